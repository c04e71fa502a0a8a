/* Decodes many small bitstreams for the tests, and says in a line for each what came of it.

   Standard input: requests, each a number of options, a number of streams, and the streams: the
   parents of a series, oldest first, and the stream itself; each with its size before it. Numbers
   have four bytes, the least significant first. An answer is

     STATUS SUM TENSORS PEAK SERIES ALLOCATIONS TEXT

   SUM is a sum over the tensors of what their names, types, shapes and elements hash to, whatever
   their order. PEAK is of the bytes allocated for the stream itself, SERIES of those for the
   series. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nnr.h"

enum {
  kInputMask = 3, /* 0 memory, 1 a function, 2 fed */
  kFactorized = 4,
  kFailAllocations = 8, /* the stream is decoded again and again, the n-th allocation failing */
  kNothingRead = 16,
  kByOddPieces = 32,
  kAsIntegers = 64, /* tensors with a step: integers times it */
  kBase = 128,      /* the streams before are what the last one is added to */
  kLayers = 256,    /* the stream is a file of quality layers */
};

typedef struct memory_log {
  size_t live, peak, count, fail_at;
} memory_log;

/* A tensor of the model, as the streams until now make it. */
typedef struct seen {
  char* name;
  nnr_type type;
  uint32_t described, shape; /* hashes: of type and shape; of the shape that an update has */
  uint64_t elements;
  uint8_t* data;
  int tied_to; /* the index of that; -1 */
  int is_gone;
} seen;

typedef struct model {
  seen* list;
  unsigned count;
} model;

typedef struct result {
  nnr_status status;
  uint32_t sum;
  unsigned count;
  size_t series_peak;
  const char* text;
} result;

typedef struct bytes {
  const uint8_t* data;
  size_t size, next;
} bytes;

static void die(const char* why) {
  fprintf(stderr, "harness: %s\n", why);
  exit(9);
}

static void* allocate(void* context, size_t size) {
  memory_log* log = (memory_log*)context;
  void* memory;
  if (size == 0) die("an allocation of nothing");
  if (++log->count == log->fail_at) return NULL;
  memory = malloc(size);
  if (!memory) return NULL;
  memset(memory, 0xa5, size);
  log->live += size;
  if (log->live > log->peak) log->peak = log->live;
  return memory;
}

static void release(void* context, void* memory, size_t size) {
  memory_log* log = (memory_log*)context;
  if (!memory || size > log->live) die("a release that fits no allocation");
  log->live -= size;
  free(memory);
}

static size_t read_bytes(void* context, void* buffer, size_t size) {
  bytes* from = (bytes*)context;
  size_t count = from->size - from->next;
  if (count > size) count = size;
  if (count > 61) count = 61; /* pieces that fit no unit */
  memcpy(buffer, from->data + from->next, count);
  from->next += count;
  return count;
}

static uint32_t crc_table[256];

static void make_crc_table(void) {
  uint32_t i, bit;
  for (i = 0; i < 256; ++i) {
    crc_table[i] = i;
    for (bit = 0; bit < 8; ++bit)
      crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xedb88320u : 0);
  }
}

/* CRC-32, as zlib has it. */
static uint32_t hashed(uint32_t hash, const void* data, size_t size) {
  const uint8_t* at = (const uint8_t*)data;
  size_t i;
  hash = ~hash;
  for (i = 0; i < size; ++i) hash = hash >> 8 ^ crc_table[(hash ^ at[i]) & 255];
  return ~hash;
}

/* An element as the tests hash it: least significant byte first, and every NaN the same one. */
static uint32_t hashed_elements(uint32_t hash, uint8_t* at, uint64_t count, nnr_type type) {
  const size_t size = nnr_type_size(type);
  uint64_t i;
  for (i = 0; i < count; ++i, at += size) {
    uint64_t word = 0;
    size_t k;
    const uint16_t one = 1;
    for (k = 0; k < size; ++k)
      word |= (uint64_t)at[*(const uint8_t*)&one ? k : size - 1 - k] << (8 * k);
    if (type == NNR_FLOAT32 && (word & 0x7fffffff) > 0x7f800000) word = 0x7fc00000;
    if (type == NNR_FLOAT16 && (word & 0x7fff) > 0x7c00) word = 0x7e00;
    if (type == NNR_BFLOAT16 && (word & 0x7fff) > 0x7f80) word = 0x7fc0;
    if (type == NNR_FLOAT64 && (word << 1) > 0xffe0000000000000) word = 0x7ff8000000000000;
    for (k = 0; k < size; ++k) {
      const uint8_t byte = (uint8_t)(word >> (8 * k));
      hash = hashed(hash, &byte, 1);
    }
  }
  return hash;
}

static uint32_t hash_of_shape(const nnr_tensor* tensor, uint32_t hash) {
  uint32_t i;
  for (i = 0; i < tensor->dimension_count; ++i) {
    char text[32];
    snprintf(text, sizeof text, ",%llu", (unsigned long long)tensor->dimensions[i]);
    hash = hashed(hash, text, strlen(text));
  }
  return hash;
}

static uint32_t hash_of_description(const nnr_tensor* tensor) {
  const char* type = nnr_type_name(tensor->type);
  return hash_of_shape(tensor, hashed(0, type, strlen(type)));
}

/* That of the shape which an update has of this tensor: a vector for a scalar. */
static uint32_t hash_of_update(const nnr_tensor* tensor) {
  return tensor->dimension_count ? hash_of_shape(tensor, 0) : hashed(0, ",1", 2);
}

static void* copied(const void* data, size_t size) {
  void* copy = malloc(size + 8);
  if (!copy) die("no memory");
  if (size) memcpy(copy, data, size);
  return copy;
}

/* A copy of a model: of one with nothing in it, an empty one. */
static model copy_of(const model* from) {
  model copy = {NULL, from->count};
  unsigned i;
  copy.list = (seen*)copied(from->list, from->count * sizeof(seen));
  for (i = 0; i < copy.count; ++i) {
    seen* at = &copy.list[i];
    at->name = (char*)copied(at->name, strlen(at->name) + 1);
    at->data = (uint8_t*)copied(at->data, (size_t)at->elements * nnr_type_size(at->type));
  }
  return copy;
}

static void clear(model* gone) {
  unsigned i;
  for (i = 0; i < gone->count; ++i) {
    free(gone->list[i].name);
    free(gone->list[i].data);
  }
  free(gone->list);
  gone->list = NULL;
  gone->count = 0;
}

static int find(const model* in, const char* name) {
  int i = (int)in->count;
  while (--i >= 0 && strcmp(in->list[i].name, name) != 0) continue;
  return i;
}

/* The entry of a name, made if there is none; it has nothing that it had before. */
static seen* renewed(model* in, const char* name) {
  int index = find(in, name);
  seen* at;
  if (index < 0) {
    in->list = (seen*)realloc(in->list, (in->count + 1) * sizeof(seen));
    index = (int)in->count++;
    in->list[index].name = (char*)copied(name, strlen(name) + 1);
    in->list[index].data = NULL;
  }
  at = &in->list[index];
  free(at->data);
  at->type = NNR_BOOL;
  at->described = 0;
  at->elements = 0;
  at->data = (uint8_t*)copied("", 0);
  at->tied_to = -1;
  at->is_gone = 0;
  return at;
}

static void integers_to_floats(uint8_t* data, uint64_t count, float step) {
  uint64_t i;
  for (i = 0; i < count; ++i, data += 4) {
    int32_t integer;
    float value;
    memcpy(&integer, data, 4);
    value = (float)((double)integer * (double)step);
    if (integer > -16777216 && integer < 16777216) value = (float)integer * step;
    memcpy(data, &value, 4);
  }
}

/* Reads all elements to `data`, or adds them to what is there. */
static nnr_status read_elements(nnr_decoder* decoder, const nnr_tensor* tensor, int flags,
                                nnr_type type, uint8_t* data, int is_sum) {
  const size_t size = nnr_type_size(type);
  const int as_integers =
      !is_sum && (flags & kAsIntegers) && tensor->step != 0 && tensor->type == NNR_FLOAT32;
  uint64_t left = tensor->elements, piece = flags & kByOddPieces ? 7 : 4096;
  nnr_status status = NNR_OK;
  while (left > 0 && status == NNR_OK) {
    const uint64_t count = left < piece ? left : piece;
    status = is_sum ? nnr_add(decoder, type, data, count)
                    : nnr_read(decoder, as_integers ? NNR_INTEGERS : type, data, count);
    if (status == NNR_OK && as_integers) integers_to_floats(data, count, tensor->step);
    data += count * size;
    left -= count;
    piece = flags & kByOddPieces ? piece * 5 % 101 + 1 : piece;
  }
  if (status == NNR_OK && nnr_read(decoder, tensor->type, data, 1) != NNR_USAGE)
    die("too many elements");
  return status;
}

/* An empty tensor has nothing that something is added to. */
static int is_empty(const model* in, int index) {
  const seen* at = &in->list[index];
  return at->tied_to < 0 && at->elements == 0;
}

static nnr_status take_tensor(nnr_decoder* decoder, const nnr_tensor* tensor, int flags,
                              model* in) {
  const int index = tensor->change != NNR_VALUES ? find(in, tensor->name) : -1;
  seen* at;
  int was_there;
  nnr_status status;
  if (index >= 0 && !in->list[index].is_gone && !is_empty(in, index)) {
    at = &in->list[index];
    if (at->tied_to >= 0) {
      seen* target = &in->list[at->tied_to];
      at->type = target->type;
      at->described = target->described;
      free(at->data);
      at->shape = target->shape;
      at->elements = target->elements;
      at->data = (uint8_t*)copied(target->data, (size_t)at->elements * nnr_type_size(at->type));
      at->tied_to = -1;
    }
    if (at->shape != hash_of_shape(tensor, 0)) return NNR_INVALID;
    status = read_elements(decoder, tensor, flags, at->type, at->data, 1);
    return status == NNR_USAGE ? NNR_INVALID : status;
  }
  was_there = find(in, tensor->name) >= 0;
  at = renewed(in, tensor->name);
  at->is_gone = tensor->role == NNR_REMOVED;
  if (at->is_gone && !was_there) return NNR_INVALID;
  if (tensor->change == NNR_CHANGED_BITS && !was_there) return NNR_INVALID;
  if (tensor->role == NNR_TIED) {
    const int target = find(in, tensor->tied_to);
    if (target < 0) die("tied to a tensor that was not handed out");
    in->list[find(in, tensor->name)].tied_to = target;
  }
  if (tensor->role == NNR_TIED || tensor->role == NNR_REMOVED) return NNR_OK;
  at->type = tensor->type;
  at->described = hash_of_description(tensor);
  at->shape = hash_of_update(tensor);
  at->elements = tensor->elements;
  free(at->data);
  at->data = (uint8_t*)malloc((size_t)at->elements * nnr_type_size(at->type) + 8);
  if (!at->data) die("no memory");
  return read_elements(decoder, tensor, flags, at->type, at->data, 0);
}

/* What the tests compare: a sum over all tensors. */
static void sum_up(const model* of, result* out) {
  unsigned i;
  for (i = 0; i < of->count; ++i) {
    const seen* at = &of->list[i];
    const seen* is = at->tied_to >= 0 ? &of->list[at->tied_to] : at;
    if (at->is_gone) continue;
    ++out->count;
    out->sum += (hashed(0, at->name, strlen(at->name)) * 2654435761u) ^
                hashed_elements(is->described, is->data, is->elements, is->type);
  }
}

static nnr_status next_tensor(nnr_decoder* decoder, nnr_tensor* tensor, bytes* fed) {
  nnr_status status = nnr_next_tensor(decoder, tensor);
  while (status == NNR_NEED_INPUT) {
    size_t size = fed->size - fed->next, taken;
    if (size > 37) size = 37;
    taken = nnr_feed(decoder, fed->data + fed->next, size);
    fed->next += taken;
    if (size == 0) nnr_feed_end(decoder);
    if (size > 0 && taken == 0) {
      status = nnr_next_tensor(decoder, tensor);
      if (status == NNR_NEED_INPUT) die("a decoder that needs input takes none");
      return status;
    }
    status = nnr_next_tensor(decoder, tensor);
  }
  return status;
}

/* Decodes the tensors of one bitstream to the model, or passes over them. */
static nnr_status decode_tensors(nnr_decoder* decoder, int flags, bytes* stream, model* to) {
  nnr_tensor tensor;
  nnr_status status;
  while ((status = next_tensor(decoder, &tensor, stream)) == NNR_OK) {
    if (flags & kNothingRead) continue;
    status = take_tensor(decoder, &tensor, flags, to);
    if (status != NNR_OK) break;
  }
  return status;
}

static nnr_status next_layer(nnr_decoder* decoder, bytes* fed) {
  nnr_status status = nnr_next_layer(decoder);
  if (status != NNR_NEED_INPUT) return status;
  if (fed->next == fed->size) nnr_feed_end(decoder);
  fed->next += nnr_feed(decoder, fed->data + fed->next, fed->size - fed->next);
  return nnr_next_layer(decoder);
}

/* Decodes all quality layers of a file, the whole ones of one that is cut. */
static nnr_status decode_layers(nnr_decoder* decoder, int flags, bytes* stream, model* to) {
  nnr_status status = decode_tensors(decoder, flags, stream, to);
  while (status == NNR_END && (status = next_layer(decoder, stream)) == NNR_OK) {
    model before = copy_of(to);
    status = decode_tensors(decoder, flags, stream, to);
    if (status == NNR_CUT) {
      model swapped = *to;
      *to = before;
      before = swapped;
      clear(&before);
      return NNR_END;
    }
    clear(&before);
  }
  return status;
}

static result decode(bytes stream, const nnr_options* options, int flags, model* to) {
  result out = {NNR_OK, 0, 0, 0, ""};
  void* place = malloc(nnr_decoder_size());
  const int input = flags & kInputMask;
  uint8_t* exact = (uint8_t*)malloc(stream.size + 1); /* so that a read behind the end is seen */
  nnr_decoder* decoder;
  nnr_tensor tensor;
  if (!place || !exact) die("no memory");
  exact = (uint8_t*)realloc(exact, stream.size ? stream.size : 1);
  if (stream.size) memcpy(exact, stream.data, stream.size);
  stream.data = exact;
  decoder = input == 0   ? nnr_open_memory(place, options, stream.data, stream.size)
            : input == 1 ? nnr_open_reader(place, options, read_bytes, &stream)
                         : nnr_open_feed(place, options);
  if (!decoder) die("a decoder does not open");
  out.status = decode_layers(decoder, flags, &stream, to);
  if (out.status != NNR_END && out.status != NNR_INVALID &&
      nnr_last_error(decoder)->status != out.status)
    die("no error told");
  if (out.status != NNR_END && nnr_last_error(decoder)->status != NNR_OK &&
      nnr_next_tensor(decoder, &tensor) != out.status)
    die("an error that does not stay");
  out.text = nnr_last_error(decoder)->text;
  nnr_close(decoder);
  free(place);
  free(exact);
  return out;
}

/* Decodes a series; `log` is of its last stream. */
static result decode_series(const bytes* streams, unsigned count, int flags, memory_log* log) {
  nnr_options options;
  memory_log series_log = {0, 0, 0, 0};
  nnr_memory series_memory = {NULL, allocate, release};
  model made = {NULL, 0};
  void* place = malloc(nnr_series_size());
  nnr_series* series;
  result out = {NNR_OK, 0, 0, 0, ""};
  unsigned i;
  series_log.fail_at = flags & kFailAllocations ? log->fail_at : 0;
  series_memory.context = &series_log;
  series = nnr_series_open(place, &series_memory);
  nnr_default_options(&options);
  options.memory = series_memory;
  options.memory.context = log;
  options.layers = flags & kFactorized ? NNR_FACTORIZED : NNR_DENSE;
  options.limits.elements_per_tensor = 1 << 22;
  options.limits.elements = 1 << 22;
  options.limits.product_operations = 1 << 26;
  options.limits.all_product_operations = 1 << 27;
  options.series = series;
  for (i = 0; i < count; ++i) {
    const int is_last = i + 1 == count, is_base = flags & kBase;
    memory_log parent_log = {0, 0, 0, 0};
    options.keep = !is_last          ? NNR_KEEP
                   : flags & kLayers ? NNR_KEEP_FOR_LAYERS
                                     : NNR_KEEP_NOTHING;
    options.is_parent = !is_last && !is_base;
    options.memory.context = is_last ? log : &parent_log;
    out = decode(streams[i], &options, is_last || is_base ? flags : kNothingRead, &made);
    if (parent_log.live) die("memory of a parent is left");
    if (out.status != NNR_END) break;
  }
  if (out.status == NNR_END) sum_up(&made, &out);
  clear(&made);
  nnr_series_close(series);
  free(place);
  if (series_log.live || log->live) die("memory is left");
  out.series_peak = series_log.peak;
  return out;
}

static void fail_allocations(const bytes* streams, unsigned count, int flags, nnr_status expected) {
  size_t n;
  for (n = 1; n < 100000; ++n) {
    memory_log log = {0, 0, 0, 0};
    result out;
    log.fail_at = n;
    out = decode_series(streams, count, flags, &log);
    if (log.count < n && out.status == expected) return;
    if (out.status != NNR_OUT_OF_MEMORY && out.status != expected)
      die("a failed allocation ends otherwise");
  }
  die("allocations without end");
}

static int read_number(uint32_t* number) {
  uint8_t b[4];
  if (fread(b, 1, 4, stdin) != 4) return 0;
  *number = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
  return 1;
}

int main(void) {
  static bytes streams[64];
  uint32_t flags, count, i;
  make_crc_table();
  while (read_number(&flags) && read_number(&count) && count <= 64) {
    memory_log log = {0, 0, 0, 0};
    result out;
    for (i = 0; i < count; ++i) {
      uint32_t size = 0;
      uint8_t* data;
      if (!read_number(&size)) die("a request ends early");
      data = (uint8_t*)malloc(size + 1);
      if (!data || fread(data, 1, size, stdin) != size) die("a request ends early");
      streams[i].data = data;
      streams[i].size = size;
      streams[i].next = 0;
    }
    out = decode_series(streams, count, (int)flags & ~kFailAllocations, &log);
    if (flags & kFailAllocations) fail_allocations(streams, count, (int)flags, out.status);
    printf("%d %lu %u %lu %lu %lu %s\n", (int)out.status, (unsigned long)out.sum, out.count,
           (unsigned long)log.peak, (unsigned long)out.series_peak, (unsigned long)log.count,
           out.text);
    for (i = 0; i < count; ++i) free((void*)streams[i].data);
  }
  return 0;
}
