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
};

typedef struct memory_log {
  size_t live, peak, count, fail_at;
} memory_log;

typedef struct seen {
  char* name;
  uint32_t hash;
} seen;

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

static uint32_t hash_of_description(const nnr_tensor* tensor) {
  const char* type = nnr_type_name(tensor->type);
  uint32_t hash = hashed(0, type, strlen(type)), i;
  for (i = 0; i < tensor->dimension_count; ++i) {
    char text[32];
    snprintf(text, sizeof text, ",%llu", (unsigned long long)tensor->dimensions[i]);
    hash = hashed(hash, text, strlen(text));
  }
  return hash;
}

static nnr_status hash_tensor(nnr_decoder* decoder, const nnr_tensor* tensor, int options,
                              uint32_t* hash) {
  static uint64_t buffer[4096];
  const int as_integers =
      (options & kAsIntegers) && tensor->step != 0 && tensor->type == NNR_FLOAT32;
  const nnr_type type = as_integers ? NNR_INTEGERS : tensor->type;
  uint64_t left = tensor->elements, piece = options & kByOddPieces ? 7 : 4096;
  nnr_status status = NNR_OK;
  *hash = hash_of_description(tensor);
  while (left > 0 && status == NNR_OK) {
    const uint64_t count = left < piece ? left : piece;
    status = nnr_read(decoder, type, buffer, count);
    if (status != NNR_OK) break;
    if (as_integers) {
      uint64_t i;
      for (i = 0; i < count; ++i) {
        int32_t integer;
        float value;
        memcpy(&integer, (char*)buffer + 4 * i, 4);
        value = (float)((double)integer * (double)tensor->step);
        if (integer > -16777216 && integer < 16777216) value = (float)integer * tensor->step;
        memcpy((char*)buffer + 4 * i, &value, 4);
      }
    }
    *hash = hashed_elements(*hash, (uint8_t*)buffer, count, tensor->type);
    left -= count;
    piece = options & kByOddPieces ? piece * 5 % 101 + 1 : piece;
  }
  if (status == NNR_OK && nnr_read(decoder, type, buffer, 1) != NNR_USAGE) die("too many elements");
  return status;
}

static void note(result* out, seen** list, const nnr_tensor* tensor, uint32_t hash) {
  seen* at;
  *list = (seen*)realloc(*list, (out->count + 1) * sizeof **list);
  at = *list + out->count++;
  at->name = (char*)malloc(strlen(tensor->name) + 1);
  strcpy(at->name, tensor->name);
  at->hash = hash;
  out->sum += (hashed(0, tensor->name, strlen(tensor->name)) * 2654435761u) ^ hash;
}

static void note_tie(result* out, seen** list, const nnr_tensor* tensor) {
  unsigned i = 0;
  while (i < out->count && strcmp((*list)[i].name, tensor->tied_to) != 0) ++i;
  if (i == out->count) die("tied to a tensor that was not handed out");
  note(out, list, tensor, (*list)[i].hash);
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

static result decode(bytes stream, const nnr_options* options, int flags) {
  result out = {NNR_OK, 0, 0, 0, ""};
  seen* list = NULL;
  void* place = malloc(nnr_decoder_size());
  const int input = flags & kInputMask;
  uint8_t* exact = (uint8_t*)malloc(stream.size + 1); /* so that a read behind the end is seen */
  nnr_decoder* decoder;
  nnr_tensor tensor;
  unsigned i;
  if (!place || !exact) die("no memory");
  exact = (uint8_t*)realloc(exact, stream.size ? stream.size : 1);
  if (stream.size) memcpy(exact, stream.data, stream.size);
  stream.data = exact;
  decoder = input == 0   ? nnr_open_memory(place, options, stream.data, stream.size)
            : input == 1 ? nnr_open_reader(place, options, read_bytes, &stream)
                         : nnr_open_feed(place, options);
  if (!decoder) die("a decoder does not open");
  while ((out.status = next_tensor(decoder, &tensor, &stream)) == NNR_OK) {
    uint32_t hash = 0;
    if (flags & kNothingRead) continue;
    if (tensor.role == NNR_TIED) {
      note_tie(&out, &list, &tensor);
      continue;
    }
    out.status = hash_tensor(decoder, &tensor, flags, &hash);
    if (out.status != NNR_OK) break;
    note(&out, &list, &tensor, hash);
  }
  if (out.status != NNR_END && nnr_last_error(decoder)->status != out.status) die("no error told");
  if (nnr_next_tensor(decoder, &tensor) != out.status) die("an end or error that does not stay");
  out.text = nnr_last_error(decoder)->text;
  nnr_close(decoder);
  for (i = 0; i < out.count; ++i) free(list[i].name);
  free(list);
  free(place);
  free(exact);
  return out;
}

/* Decodes a series; `log` is of its last stream. */
static result decode_series(const bytes* streams, unsigned count, int flags, memory_log* log) {
  nnr_options options;
  memory_log series_log = {0, 0, 0, 0};
  nnr_memory series_memory = {NULL, allocate, release};
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
    const int is_last = i + 1 == count;
    memory_log parent_log = {0, 0, 0, 0};
    options.keep_in_series = !is_last;
    options.memory.context = is_last ? log : &parent_log;
    out = decode(streams[i], &options, is_last ? flags : kNothingRead);
    if (parent_log.live) die("memory of a parent is left");
    if (out.status != NNR_END) break;
  }
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
