/* digits STREAM IMAGES dense|factorized: how many digits of the test set a network gets right that
   runs on what the stream holds, and what that takes, as a line of JSON.

   IMAGES: of each image 64 bytes, row by row from 0 to 16, and its label, a byte. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "digits_network.h"

enum { kRecord = kDigitsPixels + 1 };

static void* allocate(void* context, size_t size) {
  (void)context;
  return malloc(size);
}

static void release(void* context, void* memory, size_t size) {
  (void)context;
  (void)size;
  free(memory);
}

static size_t read_file(void* context, void* buffer, size_t size) {
  return fread(buffer, 1, size, (FILE*)context);
}

static int complain(const char* what, const char* why) {
  fprintf(stderr, "digits: %s: %s\n", what, why);
  return 1;
}

/* Decodes a bitstream to the store; 0 if that went well. */
static int decode(const char* name, nnr_layers layers, store* to) {
  FILE* file = fopen(name, "rb");
  void* place = malloc(nnr_decoder_size());
  nnr_decoder* decoder;
  nnr_options options;
  nnr_tensor tensor;
  nnr_status status;
  int failed = 0;
  nnr_default_options(&options);
  options.layers = layers;
  options.memory.allocate = allocate;
  options.memory.release = release;
  decoder = file && place ? nnr_open_reader(place, &options, read_file, file) : NULL;
  if (!decoder) return complain(name, "cannot be opened");
  while ((status = nnr_next_tensor(decoder, &tensor)) == NNR_OK)
    if ((status = store_take(to, decoder, &tensor)) != NNR_OK) break;
  if (status != NNR_END || !store_take_weights(to, decoder))
    failed = complain(name, nnr_last_error(decoder)->text);
  nnr_close(decoder);
  free(place);
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
  store tensors = {NULL, NULL, 0, 0};
  FILE* images = count == 4 ? fopen(words[2], "rb") : NULL;
  int failed;
  if (!images) return complain("usage", "digits STREAM IMAGES dense|factorized");
  failed = decode(words[1], strcmp(words[3], "dense") == 0 ? NNR_DENSE : NNR_FACTORIZED, &tensors);
  if (!failed) failed = evaluate(&tensors, images);
  store_clear(&tensors);
  fclose(images);
  return failed;
}
