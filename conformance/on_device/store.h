/* The tensors of a model in memory, as a decoder hands them out. */
#ifndef STORE_H
#define STORE_H

#include "nnr.h"

typedef struct stored {
  char* name;
  char* tied_to; /* the name of the tensor whose elements these are; null: its own */
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
  int has_products;   /* of factors that the store does not have */
  const char* reason; /* why the last call failed, if the decoder does not tell; else null */
} store;

/* Sets the options of a decoder whose quality layers a store takes, with memory of malloc; the
   series is for the caller to open. */
void store_options(nnr_options* options, nnr_layers layers);

/* Goes on to the next tensor, as nnr_next_tensor does, and reads it, or adds it to what the store
   has of its name. Returns what that call does; or an error, whose reason is the store's, or the
   decoder's. */
nnr_status store_take_next(store* to, nnr_decoder* decoder, nnr_tensor* tensor);
/* A tensor, of a tie that with its elements, or a weight in factors; null if there is none. Valid
   until the store changes. */
const stored* store_find(const store* in, const char* name);
const stored_weight* store_find_weight(const store* in, const char* name);
/* Bytes of all elements. */
uint64_t store_bytes(const store* of);
void store_clear(store* of);

#endif
