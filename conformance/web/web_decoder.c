/* What the page calls in WebAssembly: a fed decoder, the tensors that came, the digits network. One
   at a time: a worker has its own instance. */
#include <stdlib.h>
#include <string.h>

#include "digits_network.h"

#define EXPORT(name) __attribute__((export_name(#name)))

static nnr_decoder* decoder;
static nnr_tensor tensor;
static store tensors;
static void* input;
static size_t input_size;

/* Opens the decoder; 0 if there is no memory. */
EXPORT(open) int web_open(int factorized) {
  nnr_options options;
  void* place = malloc(nnr_decoder_size());
  void* series = malloc(nnr_series_size());
  store_options(&options, factorized ? NNR_FACTORIZED : NNR_DENSE);
  options.series = series ? nnr_series_open(series, &options.memory) : NULL;
  decoder = place && series ? nnr_open_feed(place, &options) : NULL;
  return decoder != NULL;
}

/* Where the next `size` bytes go; null if there is no memory. */
EXPORT(input) void* web_input(size_t size) {
  if (size > input_size) {
    free(input);
    input = malloc(size);
    input_size = input ? size : 0;
  }
  return input;
}

/* Feeds bytes from `first` on; returns how many were taken. */
EXPORT(feed) size_t web_feed(size_t first, size_t size) {
  return nnr_feed(decoder, (char*)input + first, size);
}

EXPORT(feed_end) void web_feed_end(void) { nnr_feed_end(decoder); }

/* Goes on to the next tensor, and takes its elements; a status of nnr.h. */
EXPORT(next) int web_next(void) { return store_take_next(&tensors, decoder, &tensor); }

EXPORT(next_layer) int web_next_layer(void) { return nnr_next_layer(decoder); }

EXPORT(layers) unsigned web_layers(void) {
  const uint64_t* sizes;
  return nnr_quality_layers(decoder, &sizes);
}

EXPORT(layer_size) double web_layer_size(unsigned layer) {
  const uint64_t* sizes;
  return layer < nnr_quality_layers(decoder, &sizes) && sizes ? (double)sizes[layer] : 0;
}

EXPORT(error) const char* web_error(void) {
  return tensors.reason ? tensors.reason : nnr_last_error(decoder)->text;
}
EXPORT(error_offset) double web_error_offset(void) {
  return (double)nnr_last_error(decoder)->byte_offset;
}

/* ---- The tensor that came last, as the model has it now
 * ------------------------------------------- */

EXPORT(name) const char* web_name(void) { return tensor.name; }
EXPORT(role) int web_role(void) { return (int)tensor.role; }
EXPORT(change) int web_change(void) { return (int)tensor.change; }
EXPORT(step) float web_step(void) { return tensor.step; }

static const stored* last(void) { return store_find(&tensors, tensor.name); }

EXPORT(type) const char* web_type(void) { return last() ? nnr_type_name(last()->type) : ""; }
EXPORT(type_size) size_t web_type_size(void) { return last() ? nnr_type_size(last()->type) : 0; }
EXPORT(rank) unsigned web_rank(void) { return last() ? last()->dimension_count : 0; }
EXPORT(dimension) double web_dimension(unsigned index) {
  return index < web_rank() ? (double)last()->dimensions[index] : 0;
}
EXPORT(elements) double web_elements(void) { return last() ? (double)last()->elements : 0; }
EXPORT(data) const void* web_data(void) { return last() ? last()->data : NULL; }

/* ---- The model
 * ------------------------------------------------------------------------------------ */

EXPORT(bytes) double web_bytes(void) { return (double)store_bytes(&tensors); }

static float pixels[kDigitsPixels], outputs[kDigits];
static uint64_t multiplications;

EXPORT(pixels) float* web_pixels(void) { return pixels; }
EXPORT(outputs) float* web_outputs(void) { return outputs; }
EXPORT(multiplications) double web_multiplications(void) { return (double)multiplications; }

/* Runs the digits network on the pixels; 0 if the tensors are not those of one. */
EXPORT(run) int web_run(void) {
  static digits_workspace space;
  multiplications = 0;
  return digits_outputs(&tensors, pixels, &space, outputs, &multiplications) == NULL;
}
