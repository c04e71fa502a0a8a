/* digits STREAM IMAGES dense|factorized: how many digits of the test set a network gets right that
   runs on what the stream holds, and what that takes, as a line of JSON.

   IMAGES: of each image 64 bytes, row by row from 0 to 16, and its label, a byte. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "digits_network.h"

enum { kRecord = kDigitsPixels + 1 };

static size_t read_file(void* context, void* buffer, size_t size) {
  return fread(buffer, 1, size, (FILE*)context);
}

static int complain(const char* what, const char* why) {
  fprintf(stderr, "digits: %s: %s\n", what, why);
  return 1;
}

/* Decodes a file, all of its quality layers, to the store; 0 if that went well. */
static int decode(const char* name, nnr_layers layers, store* to) {
  FILE* file = fopen(name, "rb");
  void *place = malloc(nnr_decoder_size()), *series = malloc(nnr_series_size());
  nnr_decoder* decoder = NULL;
  nnr_options options;
  nnr_tensor tensor;
  nnr_status status;
  int failed = 0;
  store_options(&options, layers);
  if (file && place && series) {
    options.series = nnr_series_open(series, &options.memory);
    decoder = nnr_open_reader(place, &options, read_file, file);
  }
  if (!decoder) return complain(name, "cannot be opened");
  do {
    while ((status = store_take_next(to, decoder, &tensor)) == NNR_OK) continue;
  } while (status == NNR_END && nnr_next_layer(decoder) == NNR_OK);
  if (status != NNR_END || nnr_last_error(decoder)->status != NNR_OK)
    failed = complain(name, to->reason ? to->reason : nnr_last_error(decoder)->text);
  nnr_close(decoder);
  nnr_series_close(options.series);
  free(place);
  free(series);
  fclose(file);
  return failed;
}

static int largest_of(const float* outputs) {
  int best = 0, i;
  for (i = 1; i < kDigits; ++i)
    if (outputs[i] > outputs[best]) best = i;
  return best;
}

static int evaluate(const store* tensors, FILE* images) {
  static digits_workspace space;
  unsigned char record[kRecord];
  float pixels[kDigitsPixels], outputs[kDigits], sum = 0;
  unsigned long count = 0, right = 0;
  uint64_t multiplications = 0;
  const clock_t start = clock();
  int i;
  while (fread(record, 1, kRecord, images) == kRecord) {
    const char* missing;
    for (i = 0; i < kDigitsPixels; ++i) pixels[i] = record[i];
    missing = digits_outputs(tensors, pixels, &space, outputs, &multiplications);
    if (missing) return complain(missing, "is missing, or does not fit the network");
    right += largest_of(outputs) == record[kDigitsPixels];
    sum += outputs[record[kDigitsPixels]];
    ++count;
  }
  if (count == 0) return complain("images", "there are none");
  printf(
      "{\"images\": %lu, \"right\": %lu, \"sum\": %.9g, \"multiplications\": %llu, \"bytes\": "
      "%llu, "
      "\"seconds\": %g}\n",
      count, right, (double)sum, (unsigned long long)(multiplications / count),
      (unsigned long long)store_bytes(tensors), (double)(clock() - start) / CLOCKS_PER_SEC);
  return 0;
}

int main(int count, char** words) {
  store tensors = {NULL, NULL, 0, 0, 0, NULL};
  const int is_dense = count == 4 && strcmp(words[3], "dense") == 0;
  const int is_factorized = count == 4 && strcmp(words[3], "factorized") == 0;
  FILE* images;
  int failed;
  if (!is_dense && !is_factorized)
    return complain("usage", "digits STREAM IMAGES dense|factorized");
  images = fopen(words[2], "rb");
  if (!images) return complain(words[2], "cannot be opened");
  failed = decode(words[1], is_dense ? NNR_DENSE : NNR_FACTORIZED, &tensors);
  if (!failed) failed = evaluate(&tensors, images);
  store_clear(&tensors);
  fclose(images);
  return failed;
}
