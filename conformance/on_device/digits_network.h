/* The digits network of conformance/models, in plain loops: on dense weights, or on the factors
   that a stream has of them, without ever forming their product. */
#ifndef DIGITS_NETWORK_H
#define DIGITS_NETWORK_H

#include "store.h"

enum { kDigitsSide = 8, kDigitsPixels = 64, kDigits = 10, kDigitsValues = 128 * 64 };

/* Memory for the maps between layers: those that go into one, and those that come out. */
typedef struct digits_workspace {
  float maps[2][kDigitsValues];
} digits_workspace;

/* Computes the network's outputs for an image of 8 by 8 pixels, from 0 (paper) to 16 (ink).

   multiplications: how many there were, those of padding not counted, is added to it.
   Returns null, or the name of a tensor that is missing or does not fit. */
const char* digits_outputs(const store* tensors, const float* pixels, digits_workspace* space,
                           float* outputs, uint64_t* multiplications);

#endif
