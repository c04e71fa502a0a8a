#include "output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#if defined(_WIN32)
#include <direct.h>
#define make_folder(path) _mkdir(path)
#define remove_folder(path) _rmdir(path)
#else
#include <unistd.h>
#define make_folder(path) mkdir(path, 0777)
#define remove_folder(path) rmdir(path)
#endif

int complain(int code, const char* what, const char* why) {
  fprintf(stderr, "nnrdec: %s: %s\n", what, why);
  return code;
}

int complain_of_stream(const char* file, const nnr_error* error) {
  fprintf(stderr, "nnrdec: %s: unit %lu, byte %llu: %s\n", file, (unsigned long)error->unit,
          (unsigned long long)error->byte_offset, error->text);
  return error->status == NNR_OUT_OF_MEMORY || error->status == NNR_INPUT_FAILED ? kFailure
                                                                                 : kBadBitstream;
}

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

int open_output(output* out, const char* folder) {
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

int close_output(output* out, int code) {
  if (out->partial) {
    if (out->list) {
      if (!out->tensors) putc('[', out->list);
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

int write_tensor(output* out, nnr_decoder* decoder, const nnr_tensor* tensor, void* buffer,
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

int write_tie(output* out, const nnr_tensor* tensor) {
  const written* other = out->tensors;
  while (other && strcmp(other->name, tensor->tied_to) != 0) other = other->next;
  return other ? note_tensor(out, tensor, other->rest)
               : complain(kFailure, tensor->name, "is tied to a tensor that is not there");
}
