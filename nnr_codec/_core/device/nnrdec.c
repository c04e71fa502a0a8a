/* nnrdec FILE -o FOLDER: decodes an NNR bitstream to raw tensors and a list of them, tensors.json
   (conformance/README.md, "Your decoder"). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nnr.h"

#if defined(_WIN32)
#include <direct.h>
#define make_folder(path) _mkdir(path)
#define remove_folder(path) _rmdir(path)
#else
#include <unistd.h>
#define make_folder(path) mkdir(path, 0777)
#define remove_folder(path) rmdir(path)
#endif

enum { kDone = 0, kFailure = 1, kUsage = 2, kBadBitstream = 3 };
enum { kBufferBytes = 1 << 16, kMaxParents = 256 };

typedef struct arguments {
  const char* file;
  const char* folder;
  const char* parents[kMaxParents];
  int parent_count;
  nnr_layers layers;
} arguments;

/* A line of tensors.json behind the name, for tensors that are tied to this one. */
typedef struct written {
  struct written* next;
  char* name;
  char* rest;
} written;

typedef struct output {
  const char* folder; /* under its final name when all is complete */
  char* partial;
  FILE* list;
  written* tensors;
  unsigned files;
} output;

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

static int complain(int code, const char* what, const char* why) {
  fprintf(stderr, "nnrdec: %s: %s\n", what, why);
  return code;
}

static int complain_of_stream(const char* file, const nnr_error* error) {
  fprintf(stderr, "nnrdec: %s: unit %lu, byte %llu: %s\n", file, (unsigned long)error->unit,
          (unsigned long long)error->byte_offset, error->text);
  return error->status == NNR_OUT_OF_MEMORY || error->status == NNR_INPUT_FAILED ? kFailure
                                                                                 : kBadBitstream;
}

/* ---- Output ---------------------------------------------------------------------------------- */

static char* joined(const char* first, const char* second) {
  char* text = (char*)malloc(strlen(first) + strlen(second) + 1);
  if (text) strcat(strcpy(text, first), second);
  return text;
}

static char* file_path(const output* out, unsigned number) {
  char name[32];
  snprintf(name, sizeof name, "/%u.bin", number);
  return joined(out->partial, name);
}

static int open_output(output* out, const char* folder) {
  struct stat found;
  char* list;
  out->folder = folder;
  if (stat(folder, &found) == 0) return complain(kUsage, folder, "exists already");
  out->partial = joined(folder, ".partial");
  if (!out->partial) return complain(kFailure, folder, "no memory");
  if (make_folder(out->partial) != 0) {
    const int code = complain(kUsage, out->partial, strerror(errno));
    free(out->partial);
    out->partial = NULL;
    return code;
  }
  list = joined(out->partial, "/tensors.json");
  out->list = list ? fopen(list, "wb") : NULL;
  free(list);
  return out->list ? kDone : complain(kFailure, folder, "the list of tensors cannot be written");
}

static void forget_tensors(output* out) {
  while (out->tensors) {
    written* next = out->tensors->next;
    free(out->tensors->name);
    free(out->tensors->rest);
    free(out->tensors);
    out->tensors = next;
  }
}

static void remove_output(output* out) {
  char* path = joined(out->partial, "/tensors.json");
  unsigned i;
  if (path) remove(path);
  free(path);
  for (i = 0; i < out->files; ++i) {
    path = file_path(out, i);
    if (path) remove(path);
    free(path);
  }
  remove_folder(out->partial);
}

/* Gives the folder its name, or removes all of it. */
static int close_output(output* out, int code) {
  if (out->partial) {
    if (out->list) {
      const int failed = fputs("\n]\n", out->list) < 0 || ferror(out->list);
      if ((fclose(out->list) != 0 || failed) && code == kDone)
        code = complain(kFailure, out->folder, "the list of tensors cannot be written");
    }
    if (code == kDone && rename(out->partial, out->folder) != 0)
      code = complain(kFailure, out->folder, strerror(errno));
    if (code != kDone) remove_output(out);
  }
  forget_tensors(out);
  free(out->partial);
  return code;
}

static void write_json_text(FILE* file, const char* text) {
  putc('"', file);
  for (; *text; ++text) {
    const unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\') {
      fprintf(file, "\\%c", c);
    } else if (c < 0x20) {
      fprintf(file, "\\u%04x", c);
    } else {
      putc(c, file);
    }
  }
  putc('"', file);
}

/* Type, shape and file of a tensor as tensors.json has them; to be freed. */
static char* described(const nnr_tensor* tensor, unsigned number) {
  char* text = (char*)malloc(96 + 24 * (size_t)tensor->dimension_count);
  char* to = text;
  uint32_t i;
  if (!text) return NULL;
  to += sprintf(to, "\"dtype\": \"%s\", \"shape\": [", nnr_type_name(tensor->type));
  for (i = 0; i < tensor->dimension_count; ++i)
    to += sprintf(to, "%s%llu", i ? ", " : "", (unsigned long long)tensor->dimensions[i]);
  sprintf(to, "], \"file\": \"%u.bin\"}", number);
  return text;
}

static int write_line(output* out, const nnr_tensor* tensor, const char* rest) {
  fputs(out->tensors ? ",\n {\"name\": " : "[\n {\"name\": ", out->list);
  write_json_text(out->list, tensor->name);
  fprintf(out->list, ", %s", rest);
  return ferror(out->list) ? complain(kFailure, out->folder, "the list cannot be written") : kDone;
}

static int note_tensor(output* out, const nnr_tensor* tensor, const char* rest) {
  written* line = (written*)calloc(1, sizeof *line);
  int code = kFailure;
  if (line) {
    line->name = joined(tensor->name, "");
    line->rest = joined(rest, "");
    code = line->name && line->rest ? write_line(out, tensor, rest) : kFailure;
    line->next = out->tensors;
    out->tensors = line;
  }
  return code;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

static void make_little_endian(unsigned char* bytes, size_t count, size_t size) {
  const uint16_t one = 1;
  size_t i, k;
  if (*(const unsigned char*)&one == 1) return;
  for (i = 0; i < count; ++i, bytes += size) {
    for (k = 0; k < size / 2; ++k) {
      const unsigned char byte = bytes[k];
      bytes[k] = bytes[size - 1 - k];
      bytes[size - 1 - k] = byte;
    }
  }
}

static int write_elements(nnr_decoder* decoder, const nnr_tensor* tensor, FILE* file, void* buffer,
                          const char* name) {
  const size_t size = nnr_type_size(tensor->type);
  uint64_t left = tensor->elements;
  while (left > 0) {
    const size_t count = left < kBufferBytes / size ? (size_t)left : kBufferBytes / size;
    if (nnr_read(decoder, tensor->type, buffer, count) != NNR_OK)
      return complain_of_stream(name, nnr_last_error(decoder));
    make_little_endian((unsigned char*)buffer, count, size);
    if (fwrite(buffer, size, count, file) != count)
      return complain(kFailure, tensor->name, strerror(errno));
    left -= count;
  }
  return kDone;
}

static int write_tensor(output* out, nnr_decoder* decoder, const nnr_tensor* tensor, void* buffer,
                        const char* name) {
  char* path = file_path(out, out->files);
  FILE* file = path ? fopen(path, "wb") : NULL;
  char* rest = described(tensor, out->files);
  int code = file && rest ? kDone : complain(kFailure, out->folder, "a file cannot be written");
  if (file) ++out->files;
  if (code == kDone) code = write_elements(decoder, tensor, file, buffer, name);
  if (file && fclose(file) != 0 && code == kDone)
    code = complain(kFailure, out->folder, strerror(errno));
  if (code == kDone) code = note_tensor(out, tensor, rest);
  free(path);
  free(rest);
  return code;
}

/* A tied tensor has the file of the other one. */
static int write_tie(output* out, const nnr_tensor* tensor) {
  const written* other = out->tensors;
  while (other && strcmp(other->name, tensor->tied_to) != 0) other = other->next;
  return other ? note_tensor(out, tensor, other->rest)
               : complain(kFailure, tensor->name, "is tied to a tensor that is not there");
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
  if (code == kDone && !out.tensors) fputs("[", out.list);
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
    if ((value = value_of("-o", count, words, &i)) || (value = value_of("--output", count, words, &i))) {
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
