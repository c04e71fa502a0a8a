#include "store.h"

#include <stdlib.h>
#include <string.h>

static void* copied(const void* data, size_t size) {
  void* copy = malloc(size ? size : 1);
  if (copy && size) memcpy(copy, data, size);
  return copy;
}

static stored* find(const store* in, const char* name) {
  unsigned i;
  for (i = 0; i < in->count; ++i)
    if (strcmp(in->tensors[i].name, name) == 0) return &in->tensors[i];
  return NULL;
}

static void clear_tensor(stored* tensor) {
  free(tensor->name);
  free(tensor->dimensions);
  free(tensor->data);
}

static void drop(store* from, const char* name) {
  stored* gone = find(from, name);
  if (!gone) return;
  clear_tensor(gone);
  *gone = from->tensors[--from->count];
}

/* Adds a tensor without elements yet; null if there is no memory. */
static stored* added(store* to, const nnr_tensor* described) {
  stored* list = (stored*)realloc(to->tensors, (to->count + 1) * sizeof(stored));
  stored* made;
  if (!list) return NULL;
  to->tensors = list;
  made = &list[to->count];
  memset(made, 0, sizeof *made);
  made->name = (char*)copied(described->name, strlen(described->name) + 1);
  made->type = described->type;
  made->dimension_count = described->dimension_count;
  made->dimensions =
      (uint64_t*)copied(described->dimensions, described->dimension_count * sizeof(uint64_t));
  made->elements = described->elements;
  if (!made->name || !made->dimensions) {
    clear_tensor(made);
    return NULL;
  }
  ++to->count;
  return made;
}

static nnr_status take_tie(store* to, const nnr_tensor* tensor) {
  const stored* other = find(to, tensor->tied_to);
  nnr_tensor described = *tensor;
  stored* made;
  if (!other) return NNR_INVALID;
  described.type = other->type;
  described.dimension_count = other->dimension_count;
  described.dimensions = other->dimensions;
  described.elements = other->elements;
  made = added(to, &described);
  if (!made) return NNR_OUT_OF_MEMORY;
  other = find(to, tensor->tied_to); /* the list may have moved */
  made->data = copied(other->data, (size_t)other->elements * nnr_type_size(other->type));
  return made->data ? NNR_OK : NNR_OUT_OF_MEMORY;
}

static nnr_status add_to(stored* base, nnr_decoder* decoder, const nnr_tensor* tensor) {
  const int is_scalar = base->dimension_count == 0;
  const size_t size = base->dimension_count * sizeof(uint64_t);
  int fits =
      is_scalar ? tensor->dimension_count == 1 : tensor->dimension_count == base->dimension_count;
  nnr_status status;
  fits = fits && tensor->elements == base->elements;
  if (!fits || (!is_scalar && memcmp(base->dimensions, tensor->dimensions, size) != 0))
    return NNR_INVALID;
  status = nnr_add(decoder, base->type, base->data, base->elements);
  return status == NNR_USAGE ? NNR_INVALID : status;
}

nnr_status store_take(store* to, nnr_decoder* decoder, const nnr_tensor* tensor) {
  stored* at = find(to, tensor->name);
  if (at && tensor->change != NNR_VALUES) return add_to(at, decoder, tensor);
  drop(to, tensor->name);
  if (tensor->role == NNR_REMOVED) return NNR_OK;
  if (tensor->role == NNR_TIED) return take_tie(to, tensor);
  at = added(to, tensor);
  if (!at) return NNR_OUT_OF_MEMORY;
  at->data = malloc((size_t)at->elements * nnr_type_size(at->type) + 1);
  if (!at->data) return NNR_OUT_OF_MEMORY;
  return at->elements ? nnr_read(decoder, at->type, at->data, at->elements) : NNR_OK;
}

int store_take_weights(store* to, const nnr_decoder* decoder) {
  nnr_weight weight;
  uint32_t i, k;
  for (i = 0; nnr_factored_weight(decoder, i, &weight) == NNR_OK; ++i) {
    const size_t size = (to->weight_count + 1) * sizeof(stored_weight);
    stored_weight* list = (stored_weight*)realloc(to->weights, size);
    stored_weight* made;
    if (!list) return 0;
    to->weights = list;
    made = &list[to->weight_count++];
    memset(made, 0, sizeof *made);
    made->form = weight.form;
    made->factor_count = weight.factor_count;
    made->name = (char*)copied(weight.name, strlen(weight.name) + 1);
    for (k = 0; k < weight.factor_count; ++k)
      made->factors[k] = (char*)copied(weight.factors[k], strlen(weight.factors[k]) + 1);
    for (k = 0; k < weight.factor_count; ++k)
      if (!made->factors[k]) return 0;
    if (!made->name) return 0;
  }
  return 1;
}

const stored* store_find(const store* in, const char* name) { return find(in, name); }

const stored_weight* store_find_weight(const store* in, const char* name) {
  unsigned i;
  for (i = 0; i < in->weight_count; ++i)
    if (in->weights[i].name && strcmp(in->weights[i].name, name) == 0) return &in->weights[i];
  return NULL;
}

uint64_t store_bytes(const store* of) {
  uint64_t bytes = 0;
  unsigned i;
  for (i = 0; i < of->count; ++i)
    bytes += of->tensors[i].elements * nnr_type_size(of->tensors[i].type);
  return bytes;
}

void store_clear(store* of) {
  unsigned i, k;
  for (i = 0; i < of->count; ++i) clear_tensor(&of->tensors[i]);
  for (i = 0; i < of->weight_count; ++i) {
    free(of->weights[i].name);
    for (k = 0; k < 4; ++k) free(of->weights[i].factors[k]);
  }
  free(of->tensors);
  free(of->weights);
  memset(of, 0, sizeof *of);
}
