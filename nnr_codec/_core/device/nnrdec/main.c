/* nnrdec FILE -o FOLDER: decodes an NNR bitstream to raw tensors and a list of them, tensors.json
   (conformance/README.md, "Your decoder"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

enum { kMaxEarlier = 256 };

typedef struct arguments {
  const char* file;
  const char* folder;
  const char* earlier[kMaxEarlier]; /* parents, or the base */
  int earlier_count, has_base;
  nnr_layers layers;
  unsigned long quality; /* layers that are wanted; 0: all */
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

/* What decoding has in hand. */
typedef struct job {
  nnr_options options;
  output* out;  /* null: for the series alone */
  void* buffer; /* of kBufferBytes */
} job;

/* Decodes the tensors of one bitstream, to its end. */
static nnr_status decode_stream(const job* work, const input* from, int* code) {
  nnr_tensor tensor;
  nnr_status status = NNR_OK;
  while (*code == kDone && (status = nnr_next_tensor(from->decoder, &tensor)) == NNR_OK)
    if (work->out) *code = put_tensor(work->out, from, &tensor, work->buffer);
  if (*code == kDone && status != NNR_END && status != NNR_CUT) *code = complain_of_stream(from);
  if (work->out && status != NNR_CUT) *code = end_stream(work->out, from, *code);
  if (work->out && status == NNR_CUT) end_stream(work->out, from, kBadBitstream);
  return status;
}

/* How many of the first quality layers are whole, as far as the file's size can be known. */
static unsigned long whole_layers(FILE* file, const uint64_t* sizes, unsigned long count) {
  const long here = ftell(file);
  unsigned long whole = 0;
  uint64_t end = 0;
  long size = -1;
  if (here >= 0 && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  if (here >= 0 && fseek(file, here, SEEK_SET) != 0) size = -1;
  if (size < 0) return count;
  while (whole < count && (end += sizes[whole]) <= (uint64_t)size) ++whole;
  return whole;
}

static int warn_of_cut(const char* name, unsigned long layer, unsigned long count) {
  fprintf(stderr,
          "nnrdec: warning: %s is cut: quality layers from number %lu on, of %lu, are left out\n",
          name, layer + 1, count);
  return kDone;
}

/* Decodes the quality layers behind the first one, as far as they are there and wanted. */
static int decode_layers(const job* work, const input* from, FILE* file, unsigned long quality) {
  const uint64_t* sizes;
  const unsigned long count = nnr_quality_layers(from->decoder, &sizes);
  const unsigned long wanted = quality ? quality : count;
  const unsigned long whole = sizes ? whole_layers(file, sizes, count) : 1;
  unsigned long layer = 1;
  int code = kDone;
  if (quality > count) {
    fprintf(stderr, "nnrdec: %s: --quality %lu: it has %lu\n", from->name, quality, count);
    return kUsage;
  }
  if (!work->out && count > 1)
    return complain(kUsage, from->name, "has quality layers: it can be a base, and is no parent");
  for (; layer < wanted && layer < whole; ++layer) {
    nnr_status status = nnr_next_layer(from->decoder);
    if (status != NNR_OK) return complain_of_stream(from);
    status = decode_stream(work, from, &code);
    if (code != kDone) return code;
    if (status == NNR_CUT && work->options.keep == NNR_KEEP)
      return complain(kBadBitstream, from->name, "is cut: so much of it is no base");
    if (status == NNR_CUT) break;
  }
  if (layer < wanted) return warn_of_cut(from->name, layer, count);
  if (layer == count && count > 1 && nnr_next_layer(from->decoder) != NNR_END)
    return complain_of_stream(from);
  return kDone;
}

/* Decodes one file. `has_base`: it has to be an update; otherwise it must be none. */
static int decode_file(const job* work, const char* name, int has_base, unsigned long quality) {
  FILE* file = fopen(name, "rb");
  void* place = malloc(nnr_decoder_size());
  input from = {NULL, NULL, 0};
  int code = kDone;
  from.name = name;
  from.is_factorized = work->options.layers == NNR_FACTORIZED;
  if (file && place) from.decoder = nnr_open_reader(place, &work->options, read_file, file);
  if (!from.decoder) code = complain(kFailure, name, file ? "no memory" : strerror(errno));
  if (code == kDone) {
    decode_stream(work, &from, &code);
    if (code == kDone && work->out && nnr_is_update(from.decoder) != has_base)
      code = complain(kBadBitstream, name,
                      has_base ? "is no update" : "is an update: --base tells of what");
    if (code == kDone) code = decode_layers(work, &from, file, quality);
  }
  nnr_close(from.decoder);
  free(place);
  if (file) fclose(file);
  return code;
}

/* Decodes what comes before: a base, or the parents, which are for the series alone. */
static int decode_earlier(const arguments* given, job* work) {
  int code = kDone, i;
  work->options.keep = NNR_KEEP;
  work->options.is_parent = !given->has_base;
  for (i = 0; i < given->earlier_count && code == kDone; ++i)
    code = decode_file(work, given->earlier[i], given->has_base && i > 0, 0);
  work->options.keep = NNR_KEEP_FOR_LAYERS;
  work->options.is_parent = 0;
  return code;
}

static int decode_all(const arguments* given, nnr_series* series, void* buffer) {
  output* out = (output*)calloc(1, sizeof *out);
  job work;
  int code = out ? kDone : complain(kFailure, given->file, "no memory");
  nnr_default_options(&work.options);
  work.options.memory.allocate = allocate;
  work.options.memory.release = release;
  work.options.series = series;
  work.options.layers = given->layers;
  work.out = NULL;
  work.buffer = buffer;
  if (code == kDone && !given->has_base) code = decode_earlier(given, &work);
  if (code == kDone) {
    work.out = out;
    code = open_output(out, given->folder);
  }
  if (code == kDone && given->has_base) code = decode_earlier(given, &work);
  if (code == kDone) code = decode_file(&work, given->file, given->has_base, given->quality);
  if (out) code = close_output(out, code);
  free(out);
  return code;
}

/* ---- Command line ---------------------------------------------------------------------------- */

static const char kHelp[] =
    "usage: nnrdec FILE -o FOLDER [--parent=FILE ... | --base=FILE ...] [--quality N]\n"
    "              [--layers dense|factorized]\n\n"
    "Decodes an NNR bitstream (ISO/IEC 15938-17) into FOLDER, which is made: the elements of each\n"
    "tensor in a raw file, little-endian, and their list, tensors.json.\n\n"
    "  -o FOLDER            where the tensors go; it must not exist\n"
    "  --parent=FILE        an earlier bitstream of the series, oldest first; may be repeated\n"
    "  --base=FILE          of an update: what it is added to, oldest first; may be repeated\n"
    "  --quality N          the first N quality layers alone (default: all that are there)\n"
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

/* Notes a file that comes before; 0 if that cannot be. */
static int add_earlier(arguments* given, const char* file, int is_base) {
  const char* problem = given->earlier_count == kMaxEarlier ? "too many parents"
                        : given->earlier_count && given->has_base != is_base
                            ? "--parent and --base do not go together"
                            : NULL;
  if (problem) {
    complain(kUsage, file, problem);
    return 0;
  }
  given->has_base = is_base;
  given->earlier[given->earlier_count++] = file;
  return 1;
}

static int parse(int count, char** words, arguments* given) {
  int i;
  for (i = 1; i < count; ++i) {
    const char* value;
    if ((value = value_of("-o", count, words, &i)) ||
        (value = value_of("--output", count, words, &i))) {
      given->folder = value;
    } else if ((value = value_of("--parent", count, words, &i))) {
      if (!add_earlier(given, value, 0)) return kUsage;
    } else if ((value = value_of("--base", count, words, &i))) {
      if (!add_earlier(given, value, 1)) return kUsage;
    } else if ((value = value_of("--quality", count, words, &i))) {
      char* end;
      given->quality = strtoul(value, &end, 10);
      if (*end || given->quality == 0 || *value == '-')
        return complain(kUsage, "--quality", "is no number of layers");
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
