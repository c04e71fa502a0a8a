#include "store.h"

#include <stdlib.h>
#include <string.h>

static void* allocate(void* context, size_t size) {
  (void)context;
  return malloc(size);
}

static void release(void* context, void* memory, size_t size) {
  (void)context;
  (void)size;
  free(memory);
}

void store_options(nnr_options* options, nnr_layers layers) {
  nnr_default_options(options);
  options->memory.allocate = allocate;
  options->memory.release = release;
  options->layers = layers;
  options->keep = NNR_KEEP_FOR_LAYERS;
}

static void* copied(const void* data, size_t size) {
  void* copy = malloc(size ? size : 1);
  if (copy && size) memcpy(copy, data, size);
  return copy;
}

static char* copied_text(const char* text) { return (char*)copied(text, strlen(text) + 1); }

static nnr_status fail(store* in, nnr_status status, const char* reason) {
  in->reason = reason;
  return status;
}

static nnr_status no_memory(store* in) {
  return fail(in, NNR_OUT_OF_MEMORY, "there is no memory for a tensor");
}

/* ---- Finding and adding -------------------------------------------------------------------------
 */

static stored* find(const store* in, const char* name) {
  unsigned i;
  for (i = 0; i < in->count; ++i)
    if (strcmp(in->tensors[i].name, name) == 0) return &in->tensors[i];
  return NULL;
}

const stored* store_find(const store* in, const char* name) {
  const stored* found = find(in, name);
  return found && found->tied_to ? find(in, found->tied_to) : found;
}

const stored_weight* store_find_weight(const store* in, const char* name) {
  unsigned i;
  for (i = 0; i < in->weight_count; ++i)
    if (strcmp(in->weights[i].name, name) == 0) return &in->weights[i];
  return NULL;
}

static void clear_tensor(stored* tensor) {
  free(tensor->name);
  free(tensor->tied_to);
  free(tensor->dimensions);
  free(tensor->data);
}

static void drop(store* from, const char* name) {
  stored* gone = find(from, name);
  if (!gone) return;
  clear_tensor(gone);
  *gone = from->tensors[--from->count];
}

/* Adds a tensor, with room for its elements; null if there is no memory. */
static stored* added(store* to, const nnr_tensor* given) {
  const size_t size = nnr_type_size(given->type);
  stored* list = (stored*)realloc(to->tensors, (to->count + 1) * sizeof(stored));
  stored* made;
  if (!list) return NULL;
  to->tensors = list;
  made = &list[to->count];
  memset(made, 0, sizeof *made);
  made->name = copied_text(given->name);
  made->type = given->type;
  made->dimension_count = given->dimension_count;
  made->dimensions =
      (uint64_t*)copied(given->dimensions, given->dimension_count * sizeof(uint64_t));
  made->elements = given->elements;
  if (given->role == NNR_TIED) made->tied_to = copied_text(given->tied_to);
  if (given->elements <= (SIZE_MAX - 1) / size)
    made->data = malloc((size_t)given->elements * size + 1);
  if (!made->name || !made->dimensions || !made->data ||
      (given->role == NNR_TIED && !made->tied_to)) {
    clear_tensor(made);
    return NULL;
  }
  ++to->count;
  return made;
}

static void clear_weight(stored_weight* weight) {
  unsigned k;
  free(weight->name);
  for (k = 0; k < 4; ++k) free(weight->factors[k]);
}

/* Notes which weights the decoder's stream makes of factors. */
static nnr_status take_weights(store* to, const nnr_decoder* decoder) {
  nnr_weight weight;
  uint32_t i, k;
  for (i = 0; nnr_factored_weight(decoder, i, &weight) == NNR_OK; ++i) {
    const size_t size = (to->weight_count + 1) * sizeof(stored_weight);
    stored_weight* list = (stored_weight*)realloc(to->weights, size);
    stored_weight made;
    int is_whole;
    if (nnr_is_update(decoder))
      return fail(to, NNR_UNSUPPORTED, "an update with new weights in factors");
    if (!list) return no_memory(to);
    to->weights = list;
    memset(&made, 0, sizeof made);
    made.form = weight.form;
    made.factor_count = weight.factor_count;
    made.name = copied_text(weight.name);
    is_whole = made.name != NULL;
    for (k = 0; k < weight.factor_count; ++k) {
      made.factors[k] = copied_text(weight.factors[k]);
      is_whole = is_whole && made.factors[k];
    }
    list[to->weight_count++] = made;
    if (!is_whole) {
      clear_weight(&list[--to->weight_count]);
      return no_memory(to);
    }
  }
  return NNR_OK;
}

/* ---- Tensors
 * ------------------------------------------------------------------------------------- */

static nnr_status add_to(store* to, stored* base, nnr_decoder* decoder, const nnr_tensor* tensor) {
  const int is_scalar = base->dimension_count == 0;
  const size_t size = base->dimension_count * sizeof(uint64_t);
  const int fits = tensor->elements == base->elements &&
                   tensor->dimension_count == (is_scalar ? 1 : base->dimension_count) &&
                   (is_scalar || memcmp(base->dimensions, tensor->dimensions, size) == 0);
  nnr_status status;
  if (!fits) return fail(to, NNR_INVALID, "a tensor has another shape in the layer before");
  status = nnr_add(decoder, base->type, base->data, base->elements);
  return status == NNR_USAGE ? fail(to, NNR_INVALID, "a tensor cannot be added to one of its type")
                             : status;
}

/* A tie has elements of its own once something is added to them. */
static nnr_status untie(store* in, stored* tie) {
  const stored* other = find(in, tie->tied_to);
  uint64_t* dimensions =
      (uint64_t*)copied(other->dimensions, other->dimension_count * sizeof(uint64_t));
  void* data = copied(other->data, (size_t)other->elements * nnr_type_size(other->type));
  if (!dimensions || !data) {
    free(dimensions);
    free(data);
    return no_memory(in);
  }
  free(tie->dimensions);
  free(tie->data);
  free(tie->tied_to);
  tie->tied_to = NULL;
  tie->type = other->type;
  tie->dimension_count = other->dimension_count;
  tie->dimensions = dimensions;
  tie->elements = other->elements;
  tie->data = data;
  return NNR_OK;
}

/* Why an update cannot do this; null if it can. What is made of factors would have to be made anew:
   only factors that the store has by themselves can be added to. */
static const char* objection(const store* in, const stored* at, const nnr_tensor* tensor) {
  if (store_find_weight(in, tensor->name)) return "an update of a weight in factors";
  if (tensor->role == NNR_REMOVED && !at) return "an update removes a tensor that is not there";
  if (tensor->change == NNR_CHANGED_BITS && !at) return "an update of a tensor that is not there";
  return !at && in->has_products
             ? "an update of weights in factors, of which there are products alone"
             : NULL;
}

static nnr_status take(store* to, nnr_decoder* decoder, const nnr_tensor* tensor) {
  stored* at = find(to, tensor->name);
  const char* problem = nnr_is_update(decoder) ? objection(to, at, tensor) : NULL;
  if (problem) return fail(to, NNR_UNSUPPORTED, problem);
  if (at && tensor->change != NNR_VALUES && tensor->role != NNR_REMOVED) {
    if (at->tied_to) {
      const nnr_status status = untie(to, at);
      if (status != NNR_OK) return status;
    }
    if (at->elements) return add_to(to, at, decoder, tensor);
  }
  drop(to, tensor->name);
  if (tensor->role == NNR_REMOVED) return NNR_OK;
  if (tensor->role == NNR_PRODUCT || tensor->role == NNR_FACTOR_G || tensor->role == NNR_FACTOR_H)
    to->has_products = 1;
  at = added(to, tensor);
  if (!at) return no_memory(to);
  return at->elements && !at->tied_to ? nnr_read(decoder, at->type, at->data, at->elements)
                                      : NNR_OK;
}

/* What is known at a bitstream's end. */
static nnr_status finish(store* to, const nnr_decoder* decoder) {
  const nnr_status status = take_weights(to, decoder);
  unsigned i;
  for (i = 0; i < to->count && status == NNR_OK; ++i)
    if (to->tensors[i].tied_to && !find(to, to->tensors[i].tied_to))
      return fail(to, NNR_INVALID, "a tensor is tied to one that is not there");
  return status == NNR_OK ? NNR_END : status;
}

nnr_status store_take_next(store* to, nnr_decoder* decoder, nnr_tensor* tensor) {
  const nnr_status status = nnr_next_tensor(decoder, tensor);
  to->reason = NULL;
  if (status == NNR_OK) return take(to, decoder, tensor);
  return status == NNR_END ? finish(to, decoder) : status;
}

uint64_t store_bytes(const store* of) {
  uint64_t bytes = 0;
  unsigned i;
  for (i = 0; i < of->count; ++i)
    bytes += of->tensors[i].elements * nnr_type_size(of->tensors[i].type);
  return bytes;
}

void store_clear(store* of) {
  unsigned i;
  for (i = 0; i < of->count; ++i) clear_tensor(&of->tensors[i]);
  for (i = 0; i < of->weight_count; ++i) clear_weight(&of->weights[i]);
  free(of->tensors);
  free(of->weights);
  memset(of, 0, sizeof *of);
}
