/* nnrdec FILE -o FOLDER: decodes an NNR bitstream to raw tensors and a list of them, tensors.json
   (conformance/README.md, "Your decoder"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

enum { kMaxParents = 256 };

typedef struct arguments {
  const char* file;
  const char* folder;
  const char* parents[kMaxParents];
  int parent_count;
  nnr_layers layers;
} arguments;

static void* allocate(void* context, size_t size) {
  (void)context;
  return malloc(size ? size : 1);
}

static void release(void* context, void* memory, size_t size) {
  (void)context;
  (void)size;
  free(memory);
}

static size_t read_file(void* context, void* buffer, size_t size) {
  FILE* file = (FILE*)context;
  const size_t count = fread(buffer, 1, size, file);
  return count == 0 && ferror(file) ? SIZE_MAX : count;
}

/* Decodes one file; without `out` for the series alone. */
static int decode_file(const char* name, const nnr_options* options, output* out, void* buffer) {
  FILE* file = fopen(name, "rb");
  void* place = malloc(nnr_decoder_size());
  nnr_decoder* decoder = file && place ? nnr_open_reader(place, options, read_file, file) : NULL;
  nnr_status status = NNR_OK;
  nnr_tensor tensor;
  int code = decoder ? kDone : complain(kFailure, name, file ? "no memory" : strerror(errno));
  while (code == kDone && (status = nnr_next_tensor(decoder, &tensor)) == NNR_OK) {
    if (!out) continue;
    code = tensor.role == NNR_TIED ? write_tie(out, &tensor)
                                   : write_tensor(out, decoder, &tensor, buffer, name);
  }
  if (code == kDone && status != NNR_END) code = complain_of_stream(name, nnr_last_error(decoder));
  nnr_close(decoder);
  free(place);
  if (file) fclose(file);
  return code;
}

static int decode_all(const arguments* given, nnr_series* series, void* buffer) {
  nnr_options options;
  output out = {0};
  int code = kDone, i;
  nnr_default_options(&options);
  options.memory.allocate = allocate;
  options.memory.release = release;
  options.series = series;
  options.keep_in_series = 1;
  options.layers = given->layers;
  for (i = 0; i < given->parent_count && code == kDone; ++i)
    code = decode_file(given->parents[i], &options, NULL, NULL);
  if (code != kDone) return code;
  options.keep_in_series = 0;
  code = open_output(&out, given->folder);
  if (code == kDone) code = decode_file(given->file, &options, &out, buffer);
  return close_output(&out, code);
}

/* ---- Command line ---------------------------------------------------------------------------- */

static const char kHelp[] =
    "usage: nnrdec FILE -o FOLDER [--parent=FILE ...] [--layers dense|factorized]\n\n"
    "Decodes an NNR bitstream (ISO/IEC 15938-17) into FOLDER, which is made: the elements of each\n"
    "tensor in a raw file, little-endian, and their list, tensors.json.\n\n"
    "  -o FOLDER            where the tensors go; it must not exist\n"
    "  --parent=FILE        an earlier bitstream of the series, oldest first; may be repeated\n"
    "  --layers factorized  decomposed weights as their factors (default: dense)\n\n"
    "Exit codes: 0 done, 1 failure, 2 usage, 3 bad bitstream.\n";

/* The value of an option, as --name=VALUE or in the next word; null if it is another option. */
static const char* value_of(const char* option, int count, char** words, int* i) {
  const size_t length = strlen(option);
  if (strncmp(words[*i], option, length) != 0) return NULL;
  if (words[*i][length] == '=') return words[*i] + length + 1;
  if (words[*i][length] != 0) return NULL;
  return *i + 1 < count ? words[++*i] : "";
}

static int parse(int count, char** words, arguments* given) {
  int i;
  for (i = 1; i < count; ++i) {
    const char* value;
    if ((value = value_of("-o", count, words, &i)) ||
        (value = value_of("--output", count, words, &i))) {
      given->folder = value;
    } else if ((value = value_of("--parent", count, words, &i))) {
      if (given->parent_count == kMaxParents) return complain(kUsage, value, "too many parents");
      given->parents[given->parent_count++] = value;
    } else if ((value = value_of("--layers", count, words, &i))) {
      if (strcmp(value, "dense") != 0 && strcmp(value, "factorized") != 0)
        return complain(kUsage, "--layers", "neither dense nor factorized");
      given->layers = *value == 'f' ? NNR_FACTORIZED : NNR_DENSE;
    } else if (words[i][0] == '-' || given->file) {
      return complain(kUsage, words[i], "unknown option, or a second file");
    } else {
      given->file = words[i];
    }
  }
  if (!given->file || !given->folder || !*given->folder)
    return complain(kUsage, "arguments", "FILE and -o FOLDER are needed; --help tells more");
  return kDone;
}

int main(int count, char** words) {
  arguments given = {0};
  nnr_memory memory = {0};
  void* place = malloc(nnr_series_size());
  void* buffer = malloc(kBufferBytes);
  int code;
  if (count == 2 && strcmp(words[1], "--help") == 0) {
    fputs(kHelp, stdout);
    code = kDone;
  } else {
    code = parse(count, words, &given);
    if (code == kDone && !(place && buffer)) code = complain(kFailure, given.file, "no memory");
    if (code == kDone) {
      nnr_series* series;
      memory.allocate = allocate;
      memory.release = release;
      series = nnr_series_open(place, &memory);
      code = decode_all(&given, series, buffer);
      nnr_series_close(series);
    }
  }
  free(place);
  free(buffer);
  return code;
}
