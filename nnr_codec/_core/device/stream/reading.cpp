// Elements of the tensor that was handed out last.
#include "../../decode/dequantize.h"
#include "decoder.h"

namespace nnr::device {

nnr_status Decoder::read(nnr_type type, void* elements, uint64_t count) {
  return take(type, elements, count, false);
}

nnr_status Decoder::add(nnr_type type, void* elements, uint64_t count) {
  return take(type, elements, count, true);
}

// Reads the next elements, or adds them to those that are there.
nnr_status Decoder::take(nnr_type type, void* elements, uint64_t count, bool is_sum) {
  if (failure_.is_set()) return status();
  if (from_ == From::kNothing || count > elements_ - read_) return NNR_USAGE;
  if (!(is_sum ? accepts_sum(type) : accepts(type))) return NNR_USAGE;
  uint8_t* to = static_cast<uint8_t*>(elements);
  while (count > 0) {
    const uint64_t piece = count < kUncancelled ? count : kUncancelled;
    if (!ask_whether_cancelled()) return status();
    if (!(is_sum ? add_piece(type, to, piece) : read_piece(type, to, piece))) return status();
    to += static_cast<size_t>(piece) * nnr_type_size(type);
    read_ += piece;
    count -= piece;
  }
  return NNR_OK;
}

// Whether what is read can be added to elements of a type.
bool Decoder::accepts_sum(nnr_type type) const {
#if NNR_WITH_MAP
  if (change_ == NNR_VALUES || from_ == From::kProduct || type == NNR_INTEGERS) return false;
  return values_.type() == NNR_INT32 ||
         (values_.type() == NNR_FLOAT32 && change_ == NNR_ADDED && is_signed_float(type));
#else
  return (void)type, false;
#endif
}

bool Decoder::accepts(nnr_type type) const {
  if (type == NNR_INTEGERS) return from_ == From::kCodeword && values_.step() != 0;
#if NNR_WITH_FLOATS
  return type == values_.type() || type == NNR_FLOAT32 || type == NNR_FLOAT16 ||
         type == NNR_BFLOAT16;
#else
  return type == values_.type() && !is_float(type);
#endif
}

bool Decoder::read_piece(nnr_type type, uint8_t* elements, uint64_t count) {
  const bool as_integers = type == NNR_INTEGERS;
  const bool is_plain = from_ == From::kCodeword && type == NNR_FLOAT32 && values_.is_plain();
  if (as_integers || is_plain) {
    int32_t* integers = reinterpret_cast<int32_t*>(elements);
    if (!read_integers(integers, count)) return false;
    const size_t size = static_cast<size_t>(count);
    if (as_integers) return values_.look_up(integers, size, failure_);
#if NNR_WITH_FLOATS
    dequantize(integers, size, values_.step(), reinterpret_cast<float*>(elements));
#endif
    return true;
  }
  const size_t size = nnr_type_size(type), own_size = type_info(values_.type()).size;
  const size_t most = most_at_once();
  uint64_t own[kPiece];  // elements of the tensor's own type, of 8 bytes at most
  for (uint64_t done = 0; done < count;) {
    const size_t part = count - done < most ? static_cast<size_t>(count - done) : most;
    const bool is_own = type == values_.type();
    uint8_t* to = is_own ? elements : reinterpret_cast<uint8_t*>(own);
    if (!read_native(to, read_ + done, part)) return false;
    for (size_t i = 0; !is_own && i < part; ++i)
      store_float(elements + i * size, load_float(to + i * own_size, values_.type()), type);
    elements += part * size;
    done += part;
  }
  return true;
}

// Adds the next elements to those of a base, as spec/model_map.md has it ("The sum").
bool Decoder::add_piece(nnr_type type, uint8_t* elements, uint64_t count) {
#if NNR_WITH_MAP
  const size_t size = nnr_type_size(type), most = most_at_once();
  for (uint64_t done = 0; done < count;) {
    int32_t own[kPiece];  // or the bits of floats
    const size_t part = count - done < most ? static_cast<size_t>(count - done) : most;
    if (!read_native(reinterpret_cast<uint8_t*>(own), read_ + done, part)) return false;
    for (size_t i = 0; i < part; ++i, elements += size) {
      if (values_.type() == NNR_INT32) {
        const uint64_t word = load_word(elements, size);
        const uint64_t change = static_cast<uint64_t>(int64_t{own[i]});
        const uint64_t sum = change_ == NNR_ADDED ? word + change : word ^ change;
        store_word(elements, type == NNR_BOOL ? sum & 1 : sum, size);
      } else if (type == NNR_FLOAT64) {
        const double sum = load_number(elements, type) + double{bits_cast<float>(own[i])};
        std::memcpy(elements, &sum, sizeof sum);
      } else {
        store_float(elements, load_float(elements, type) + bits_cast<float>(own[i]), type);
      }
    }
    done += part;
  }
#endif
  (void)type, (void)elements, (void)count;
  return true;
}

// Reads `count` elements, from element `first` on, of the tensor's own type.
bool Decoder::read_native(uint8_t* elements, uint64_t first, size_t count) {
  [[maybe_unused]] const size_t size = type_info(values_.type()).size;
  int32_t integers[kPiece];
  switch (from_) {
    case From::kCodeword: {
      const uint64_t each = values_.integers_per_value();
      return read_integers(integers, count * each) &&
             values_.convert(integers, first, count, elements, failure_);
    }
    case From::kPayload: {
      const uint8_t* bytes = walk_.payload() + 4 * static_cast<size_t>(first);
      for (size_t i = 0; i < count; ++i, bytes += 4)
        integers[i] = static_cast<int32_t>(uint32_t{bytes[3]} << 24 | uint32_t{bytes[2]} << 16 |
                                           uint32_t{bytes[1]} << 8 | bytes[0]);
      return values_.convert(integers, first, count, elements, failure_);
    }
#if NNR_WITH_DC
    case From::kStored: {
      const uint8_t* data = static_cast<const uint8_t*>(read_from_->data);
      std::memcpy(elements, data + static_cast<size_t>(first) * size, count * size);
      return true;
    }
    case From::kStoredFloats: {
      const float* data = static_cast<const float*>(read_from_->data) + first;
      for (size_t i = 0; i < count; ++i) values_.convert_number(data[i], elements + i * size);
      return true;
    }
    default:
      for (size_t i = 0; i < count; ++i)
        values_.convert_number(product_.element(first + i), elements + i * size);
      return true;
#else
    default: return true;
#endif
  }
}

bool Decoder::read_integers(int32_t* integers, uint64_t count) {
  if (!coded_.read(integers, count, failure_)) return false;
  const bool is_last = coded_.left() == 0 && next_tensor_ == tensor_count_;
  return !is_last || check_status(finish_codeword(arithmetic_, walk_.payload_size()), failure_);
}

}  // namespace nnr::device
