// The C interface.
#include "nnr.h"

#include <new>

#include "stream/decoder.h"

using nnr::device::Decoder;
using nnr::device::Series;

namespace {

// Limits of spec/limits.md.
constexpr nnr_limits kDefaultLimits = {
    uint64_t{1} << 30,        // elements_per_tensor
    uint64_t{1} << 31,        // elements
    uint64_t{1} << 20,        // units
    uint64_t{1} << 35,        // stream_bytes
    (uint64_t{1} << 31) - 1,  // unit_bytes
    4096,                     // name_bytes
    32,                       // dimensions
    uint64_t{1} << 37,        // product_operations
    uint64_t{1} << 40,        // all_product_operations
    uint64_t{1} << 24,        // header_entries
    uint64_t{1} << 23,        // topology_bytes
};

Decoder* implementation(nnr_decoder* decoder) { return reinterpret_cast<Decoder*>(decoder); }

bool is_usable(const void* place, const nnr_options* options) {
  return place && options && options->version == NNR_VERSION && options->memory.allocate &&
         options->memory.release;
}

Decoder* open(void* place, const nnr_options* options) {
  return is_usable(place, options) ? new (place) Decoder(*options) : nullptr;
}

}  // namespace

void nnr_default_options(nnr_options* options) {
  *options = nnr_options();
  options->version = NNR_VERSION;
  options->limits = kDefaultLimits;
}

size_t nnr_decoder_size(void) { return sizeof(Decoder); }

nnr_decoder* nnr_open_memory(void* place, const nnr_options* options, const void* data,
                             size_t size) {
  Decoder* decoder = data || size == 0 ? open(place, options) : nullptr;
  if (decoder) decoder->source().open_memory(data, size);
  return reinterpret_cast<nnr_decoder*>(decoder);
}

nnr_decoder* nnr_open_reader(void* place, const nnr_options* options, nnr_read_function read,
                             void* context) {
  Decoder* decoder = read ? open(place, options) : nullptr;
  if (decoder) decoder->source().open_reader(read, context);
  return reinterpret_cast<nnr_decoder*>(decoder);
}

nnr_decoder* nnr_open_feed(void* place, const nnr_options* options) {
  return reinterpret_cast<nnr_decoder*>(open(place, options));
}

size_t nnr_feed(nnr_decoder* decoder, const void* data, size_t size) {
  nnr::device::UnitSource& source = implementation(decoder)->source();
  return source.is_fed() ? source.feed(data, size) : 0;
}

void nnr_feed_end(nnr_decoder* decoder) { implementation(decoder)->source().feed_end(); }

nnr_status nnr_next_tensor(nnr_decoder* decoder, nnr_tensor* tensor) {
  return implementation(decoder)->next_tensor(*tensor);
}

nnr_status nnr_read(nnr_decoder* decoder, nnr_type type, void* elements, uint64_t count) {
  return implementation(decoder)->read(type, elements, count);
}

nnr_status nnr_add(nnr_decoder* decoder, nnr_type type, void* elements, uint64_t count) {
  return implementation(decoder)->add(type, elements, count);
}

nnr_status nnr_next_layer(nnr_decoder* decoder) { return implementation(decoder)->next_layer(); }

nnr_status nnr_factored_weight(const nnr_decoder* decoder, uint32_t index, nnr_weight* weight) {
  const Decoder* from = reinterpret_cast<const Decoder*>(decoder);
  return from->factored_weight(index, *weight) ? NNR_OK : NNR_END;
}

int nnr_is_update(const nnr_decoder* decoder) {
  return reinterpret_cast<const Decoder*>(decoder)->is_update();
}

uint32_t nnr_quality_layers(nnr_decoder* decoder, const uint64_t** sizes) {
  return implementation(decoder)->quality_layers(sizes);
}

size_t nnr_type_size(nnr_type type) {
  return type == NNR_INTEGERS ? sizeof(int32_t) : nnr::device::type_info(type).size;
}

const char* nnr_type_name(nnr_type type) {
  return type == NNR_INTEGERS ? "int32" : nnr::device::type_info(type).name;
}

const nnr_error* nnr_last_error(const nnr_decoder* decoder) {
  return &reinterpret_cast<const Decoder*>(decoder)->error();
}

void nnr_close(nnr_decoder* decoder) {
  if (decoder) implementation(decoder)->~Decoder();
}

#if NNR_WITH_UPDATES

size_t nnr_series_size(void) { return sizeof(Series); }

nnr_series* nnr_series_open(void* place, const nnr_memory* memory) {
  if (!place || !memory || !memory->allocate || !memory->release) return nullptr;
  return reinterpret_cast<nnr_series*>(new (place) Series(*memory));
}

void nnr_series_close(nnr_series* series) {
  if (series) reinterpret_cast<Series*>(series)->~Series();
}

#else

size_t nnr_series_size(void) { return 0; }
nnr_series* nnr_series_open(void*, const nnr_memory*) { return nullptr; }
void nnr_series_close(nnr_series*) {}

#endif
