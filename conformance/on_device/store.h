/* The tensors of a model in memory, as a decoder hands them out. */
#ifndef STORE_H
#define STORE_H

#include "nnr.h"

typedef struct stored {
  char* name;
  nnr_type type;
  uint32_t dimension_count;
  uint64_t* dimensions;
  uint64_t elements;
  void* data;
} stored;

typedef struct stored_weight { /* of factors; as nnr_weight */
  char* name;
  nnr_form form;
  uint32_t factor_count;
  char* factors[4];
} stored_weight;

typedef struct store {
  stored* tensors;
  stored_weight* weights;
  unsigned count, weight_count;
} store;

/* Takes the tensor that was handed out last: reads it, or adds it to what the store has of its
   name. Gives what nnr_read does; NNR_INVALID if it does not fit, NNR_OUT_OF_MEMORY. */
nnr_status store_take(store* to, nnr_decoder* decoder, const nnr_tensor* tensor);
/* Notes which weights the decoder's stream makes of factors; 0 if there is no memory. */
int store_take_weights(store* to, const nnr_decoder* decoder);
/* A tensor, or a weight in factors; null if there is none. Valid until the store changes. */
const stored* store_find(const store* in, const char* name);
const stored_weight* store_find_weight(const store* in, const char* name);
/* Bytes of all elements. */
uint64_t store_bytes(const store* of);
void store_clear(store* of);

#endif
