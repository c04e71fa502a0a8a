/* A target for libFuzzer: the first byte chooses how a bitstream is read, and whether the second
   part of the data, behind a size of two bytes, is its parent. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "nnr.h"

static void* allocate(void* context, size_t size) {
  (void)context;
  return malloc(size);
}

static void release(void* context, void* memory, size_t size) {
  (void)context;
  (void)size;
  free(memory);
}

/* Reads the elements of a tensor, or adds them to whatever there is. */
static void read_tensor(nnr_decoder* decoder, const nnr_tensor* tensor, int how) {
  static uint64_t buffer[512];
  uint64_t left = tensor->role == NNR_TIED || tensor->role == NNR_REMOVED ? 0 : tensor->elements;
  const int is_sum = tensor->change != NNR_VALUES;
  nnr_type type = tensor->type;
  if ((how & 4) && tensor->step != 0) type = is_sum ? NNR_FLOAT64 : NNR_INTEGERS;
  if (how & 8) type = NNR_FLOAT16;
  while (left > 0) {
    const uint64_t count = left < 512 ? left : 512;
    const nnr_status status =
        is_sum ? nnr_add(decoder, type, buffer, count) : nnr_read(decoder, type, buffer, count);
    if (status != NNR_OK) break;
    left -= count;
  }
}

static void read_all(nnr_decoder* decoder, const uint8_t* data, size_t size, int how) {
  nnr_tensor tensor;
  nnr_weight weight;
  size_t fed = 0;
  nnr_status status = NNR_OK;
  uint32_t i;
  int is_ended = 0;
  for (;;) {
    status = is_ended ? nnr_next_layer(decoder) : nnr_next_tensor(decoder, &tensor);
    if (status == NNR_NEED_INPUT) {
      if (fed == size) nnr_feed_end(decoder);
      fed += nnr_feed(decoder, data + fed, size - fed);
    } else if (status == NNR_END && !is_ended) {
      for (i = 0; nnr_factored_weight(decoder, i, &weight) == NNR_OK;) i += weight.factor_count;
      is_ended = 1;
    } else if (status != NNR_OK) {
      return;
    } else if (is_ended) {
      is_ended = 0;
    } else {
      read_tensor(decoder, &tensor, how);
    }
  }
}

static void decode(const uint8_t* data, size_t size, nnr_options* options, int how) {
  void* place = malloc(nnr_decoder_size());
  nnr_decoder* decoder =
      how & 2 ? nnr_open_feed(place, options) : nnr_open_memory(place, options, data, size);
  read_all(decoder, data, size, how);
  nnr_close(decoder);
  free(place);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nnr_options options;
  nnr_memory memory = {NULL, allocate, release};
  void* place;
  size_t parent = 0;
  int how;
  if (size < 3) return 0;
  how = data[0];
  if (how & 16) parent = (size_t)(data[1] | data[2] << 8) % (size - 2);
  data += 3;
  size -= 3;
  if (parent > size) parent = size;
  place = malloc(nnr_series_size());
  nnr_default_options(&options);
  options.memory = memory;
  options.layers = how & 1 ? NNR_FACTORIZED : NNR_DENSE;
  options.limits.elements_per_tensor = 1 << 14;
  options.limits.elements = 1 << 15;
  options.limits.product_operations = 1 << 18;
  options.limits.all_product_operations = 1 << 19;
  options.series = nnr_series_open(place, &memory);
  options.keep = NNR_KEEP;
  if (parent) decode(data, parent, &options, how & 2);
  options.keep = how & 32 ? NNR_KEEP_FOR_LAYERS : NNR_KEEP_NOTHING;
  decode(data + parent, size - parent, &options, how);
  nnr_series_close(options.series);
  free(place);
  return 0;
}
