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

int complain_of_tensor(const char* file, const char* tensor, const char* why) {
  fprintf(stderr, "nnrdec: %s: tensor %s: %s\n", file, tensor, why);
  return kBadBitstream;
}

int complain_of_stream(const input* from) {
  const nnr_error* error = nnr_last_error(from->decoder);
  fprintf(stderr, "nnrdec: %s: unit %lu, byte %llu: %s\n", from->name, (unsigned long)error->unit,
          (unsigned long long)error->byte_offset, error->text);
  return error->status == NNR_OUT_OF_MEMORY || error->status == NNR_INPUT_FAILED ? kFailure
                                                                                 : kBadBitstream;
}

static char* joined(const char* first, const char* second) {
  char* text = (char*)malloc(strlen(first) + strlen(second) + 1);
  if (text) strcat(strcpy(text, first), second);
  return text;
}

/* ---- Files ----------------------------------------------------------------------------------- */

static char* file_path(const output* out, unsigned number) {
  char name[32];
  snprintf(name, sizeof name, "/%u.bin", number);
  return joined(out->partial, name);
}

static FILE* open_file(const output* out, unsigned number, const char* mode) {
  char* path = file_path(out, number);
  FILE* file = path ? fopen(path, mode) : NULL;
  free(path);
  return file;
}

static void remove_file(const output* out, unsigned number) {
  char* path = file_path(out, number);
  if (path) remove(path);
  free(path);
}

int open_output(output* out, const char* folder) {
  struct stat found;
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
  return kDone;
}

static void remove_output(output* out) {
  char* path = joined(out->partial, "/tensors.json");
  unsigned i;
  if (path) remove(path);
  free(path);
  for (i = 0; i < out->files; ++i) remove_file(out, i);
  remove_folder(out->partial);
}

/* ---- The list -------------------------------------------------------------------------------- */

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

/* What stands behind a tensor's name: that of what it is tied to; null if that is not there. */
static const version* resolved(const entry* tensor) {
  if (tensor->now.role != NNR_TIED) return &tensor->now;
  tensor = tensor->now.tied_to;
  return tensor->is_there && tensor->now.role != NNR_TIED ? &tensor->now : NULL;
}

static int write_list(output* out) {
  char* path = joined(out->partial, "/tensors.json");
  FILE* list = path ? fopen(path, "wb") : NULL;
  const char* before = "[";
  const entry* tensor;
  int code = list ? kDone : complain(kFailure, out->folder, "the list cannot be written");
  free(path);
  for (tensor = out->first; tensor && code == kDone; tensor = tensor->next) {
    const version* is = tensor->is_there ? resolved(tensor) : NULL;
    if (!is) continue;
    fprintf(list, "%s\n {\"name\": ", before);
    write_json_text(list, tensor->name);
    fprintf(list, ", \"dtype\": \"%s\", \"shape\": [%s], \"file\": \"%u.bin\"}",
            nnr_type_name(is->type), is->shape, is->file);
    before = ",";
  }
  if (list) {
    const int failed = fputs(*before == '[' ? "[\n]\n" : "\n]\n", list) < 0 || ferror(list);
    if ((fclose(list) != 0 || failed) && code == kDone)
      code = complain(kFailure, out->folder, "the list cannot be written");
  }
  return code;
}

int close_output(output* out, int code) {
  if (out->partial) {
    if (code == kDone) code = write_list(out);
    if (code == kDone && rename(out->partial, out->folder) != 0)
      code = complain(kFailure, out->folder, strerror(errno));
    if (code != kDone) remove_output(out);
  }
  while (out->first) {
    entry* next = out->first->next;
    free(out->first->name);
    free(out->first->now.shape);
    free(out->first->then.shape);
    free(out->first);
    out->first = next;
  }
  free(out->partial);
  return code;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

static entry** bucket_of(output* out, const char* name) {
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (; *name; ++name) hash = (hash ^ (unsigned char)*name) * 16777619u;
  return &out->buckets[(hash ^ hash >> 16) % kBuckets];
}

static entry* find(output* out, const char* name) {
  entry* found = *bucket_of(out, name);
  while (found && strcmp(found->name, name) != 0) found = found->chain;
  return found;
}

static entry* find_or_add(output* out, const char* name) {
  entry** bucket = bucket_of(out, name);
  entry* found = find(out, name);
  if (found) return found;
  found = (entry*)calloc(1, sizeof *found);
  if (found) found->name = joined(name, "");
  if (!found || !found->name) {
    free(found);
    return NULL;
  }
  found->chain = *bucket;
  *bucket = found;
  if (out->last) out->last->next = found;
  if (!out->first) out->first = found;
  return out->last = found;
}

static void drop(output* out, version* gone) {
  free(gone->shape);
  gone->shape = NULL;
  if (gone->role != NNR_TIED && gone->role != NNR_REMOVED) remove_file(out, gone->file);
}

/* Notes which weights are made of which factors, as the map of a base says. */
static int note_weights(output* out, const input* from) {
  nnr_weight weight;
  uint32_t i, k;
  for (i = 0; nnr_factored_weight(from->decoder, i, &weight) == NNR_OK; ++i) {
    entry* at = find_or_add(out, weight.name);
    if (!at) return complain(kFailure, weight.name, "no memory");
    if (nnr_is_update(from->decoder))
      return complain_of_tensor(from->name, weight.name, "a new weight in factors: unsupported");
    at->is_weight = 1;
    for (k = 0; k < weight.factor_count; ++k) {
      at = find_or_add(out, weight.factors[k]);
      if (!at) return complain(kFailure, weight.factors[k], "no memory");
      at->is_factor = 1;
    }
  }
  return kDone;
}

static int check_ties(const output* out, const input* from) {
  const entry* tensor;
  for (tensor = out->first; tensor; tensor = tensor->next)
    if (tensor->is_there && !resolved(tensor))
      return complain_of_tensor(from->name, tensor->name, "is tied to a tensor that is not there");
  return kDone;
}

int end_stream(output* out, const input* from, int code) {
  entry* tensor;
  const int is_good = code == kDone;
  if (is_good && from->is_factorized) code = note_weights(out, from);
  for (tensor = out->first; tensor; tensor = tensor->next) {
    if (!tensor->is_changed) continue;
    tensor->is_changed = 0;
    if (is_good) {
      if (tensor->is_there) drop(out, &tensor->now);
      tensor->now = tensor->then;
      tensor->is_there = tensor->now.role != NNR_REMOVED;
    } else {
      drop(out, &tensor->then);
    }
    memset(&tensor->then, 0, sizeof tensor->then);
  }
  return code == kDone ? check_ties(out, from) : code;
}

/* The dimensions of a tensor as tensors.json has them; to be freed. */
static char* shape_text(const nnr_tensor* tensor) {
  char* text = (char*)malloc(1 + 24 * (size_t)tensor->dimension_count);
  char* to = text;
  uint32_t i;
  if (!text) return NULL;
  *to = 0;
  for (i = 0; i < tensor->dimension_count; ++i)
    to += sprintf(to, "%s%llu", i ? ", " : "", (unsigned long long)tensor->dimensions[i]);
  return text;
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

/* Decodes all elements to a file; `base` has those that they are added to, or is null. */
static int write_elements(const input* from, const nnr_tensor* tensor, const version* made,
                          FILE* base, FILE* file, void* buffer) {
  const size_t size = nnr_type_size(made->type);
  uint64_t left = tensor->elements;
  nnr_status status;
  while (left > 0) {
    const size_t count = left < kBufferBytes / size ? (size_t)left : kBufferBytes / size;
    if (base) {
      if (fread(buffer, size, count, base) != count)
        return complain(kFailure, tensor->name, "its base cannot be read again");
      make_little_endian((unsigned char*)buffer, count, size);
      status = nnr_add(from->decoder, made->type, buffer, count);
    } else {
      status = nnr_read(from->decoder, made->type, buffer, count);
    }
    if (status == NNR_USAGE)
      return complain_of_tensor(from->name, tensor->name, "cannot be added to one of its type");
    if (status != NNR_OK) return complain_of_stream(from);
    make_little_endian((unsigned char*)buffer, count, size);
    if (fwrite(buffer, size, count, file) != count)
      return complain(kFailure, tensor->name, strerror(errno));
    left -= count;
  }
  return kDone;
}

static int write_file(output* out, const input* from, const nnr_tensor* tensor, const version* made,
                      const version* before, void* buffer) {
  FILE* file = open_file(out, made->file, "wb");
  FILE* base = before ? open_file(out, before->file, "rb") : NULL;
  int code = file && (base || !before) ? kDone : kFailure;
  if (code != kDone) complain(code, out->folder, strerror(errno));
  if (code == kDone) code = write_elements(from, tensor, made, base, file, buffer);
  if (base) fclose(base);
  if (file && fclose(file) != 0 && code == kDone)
    code = complain(kFailure, out->folder, strerror(errno));
  return code;
}

/* Whether what an update adds has the shape of its base: a vector of one element for a scalar. */
static int fits(const version* before, const char* shape) {
  return strcmp(*before->shape ? before->shape : "1", shape) == 0;
}

/* What is added to; null if the elements are values. An empty tensor has nothing to add to. */
static const version* base_of(const entry* at, const nnr_tensor* tensor) {
  const version* now = at->is_there && tensor->change != NNR_VALUES ? resolved(at) : NULL;
  return now && now->role != NNR_EMPTY ? now : NULL;
}

static int put_values(output* out, const input* from, entry* at, const nnr_tensor* tensor,
                      void* buffer) {
  const version* before = base_of(at, tensor);
  version* made = &at->then;
  made->shape = shape_text(tensor);
  made->type = tensor->type;
  if (made->shape && before) {
    if (!fits(before, made->shape))
      return complain_of_tensor(from->name, tensor->name, "has another shape in the base");
    made->type = before->type;
    free(made->shape);
    made->shape = joined(before->shape, "");
  }
  if (!made->shape) return complain(kFailure, tensor->name, "no memory");
  if (at->is_factor && at->is_there &&
      (made->type != at->now.type || strcmp(made->shape, at->now.shape) != 0))
    return complain_of_tensor(from->name, tensor->name,
                              "is a factor of the base, of another shape or type: unsupported");
  return write_file(out, from, tensor, made, before, buffer);
}

/* Why an update cannot do this to what the base has; null if it can. What is made of factors would
   have to be made anew: only factors that are listed by themselves can be added to. */
static const char* objection(const output* out, const input* from, const entry* at,
                             const nnr_tensor* tensor) {
  if (at->is_weight) return "is a weight in factors of the base: unsupported";
  if (tensor->role == NNR_REMOVED) return at->is_there ? NULL : "is not in the base";
  if (tensor->change == NNR_CHANGED_BITS && !base_of(at, tensor)) return "is not in the base";
  if (at->is_factor && out->has_products)
    return "is a factor of the base, of which other tensors are made: unsupported";
  if (!out->has_products || at->is_there) return NULL;
  return from->is_factorized
             ? "may be a factor of a weight of the base: unsupported"
             : "may be a factor of a weight of the base: --layers factorized takes its updates";
}

int put_tensor(output* out, const input* from, const nnr_tensor* tensor, void* buffer) {
  entry* at = find_or_add(out, tensor->name);
  const char* problem = NULL;
  if (!at) return complain(kFailure, tensor->name, "no memory");
  if (nnr_is_update(from->decoder)) problem = objection(out, from, at, tensor);
  if (problem) return complain_of_tensor(from->name, tensor->name, problem);
  at->is_changed = 1;
  at->then.role = tensor->role;
  if (tensor->role == NNR_REMOVED) return kDone;
  if (tensor->role == NNR_FACTOR_G || tensor->role == NNR_FACTOR_H || tensor->role == NNR_PRODUCT)
    out->has_products = 1;
  if (tensor->role == NNR_TIED) {
    at->then.tied_to = find(out, tensor->tied_to);
    return at->then.tied_to
               ? kDone
               : complain_of_tensor(from->name, tensor->name, "is tied to what is not there");
  }
  at->then.file = out->files++;
  return put_values(out, from, at, tensor, buffer);
}
