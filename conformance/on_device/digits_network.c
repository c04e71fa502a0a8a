#include "digits_network.h"

#include <math.h>
#include <string.h>

enum { kTaps = 3 };
static const float kEpsilon = 1e-5f; /* of the batch normalization */

/* Values in the channels of square maps. */
typedef struct maps {
  float* values;
  int channels, side;
} maps;

/* Elements of a convolution, wherever they lie: steps from one to the next in each direction. */
typedef struct taps {
  const float* values;
  int outputs, inputs, height, width;
  int by_output, by_input, by_row, by_column;
  int is_depthwise; /* channel r gives channel r alone: by_input is of no use */
} taps;

typedef struct run {
  const store* tensors;
  digits_workspace* space;
  uint64_t* multiplications;
} run;

/* Adds up a convolution that keeps the size of the maps, zeros around them. */
static void convolve(const run* of, const maps* in, const taps* by, maps* out) {
  const int side = in->side;
  int o, i, dy, dx, y, x;
  out->channels = by->outputs;
  out->side = side;
  memset(out->values, 0, (size_t)(by->outputs * side * side) * sizeof(float));
  for (o = 0; o < by->outputs; ++o)
    for (i = by->is_depthwise ? o : 0; i < (by->is_depthwise ? o + 1 : by->inputs); ++i)
      for (dy = 0; dy < by->height; ++dy)
        for (dx = 0; dx < by->width; ++dx) {
          const int at = o * by->by_output + (by->is_depthwise ? 0 : i * by->by_input);
          const float weight = by->values[at + dy * by->by_row + dx * by->by_column];
          const int up = dy - by->height / 2, left = dx - by->width / 2;
          const int top = up < 0 ? -up : 0, bottom = up > 0 ? side - up : side;
          const int first = left < 0 ? -left : 0, last = left > 0 ? side - left : side;
          for (y = top; y < bottom; ++y) {
            const float* from = in->values + (i * side + y + up) * side + left;
            float* to = out->values + (o * side + y) * side;
            for (x = first; x < last; ++x) to[x] += weight * from[x];
          }
          *of->multiplications += (uint64_t)((bottom - top) * (last - first));
        }
}

/* The elements of a tensor, of float32 and these dimensions; null if it is not there or has others.
   A dimension of 0 is whatever it is, and set to that. */
static const float* elements(const run* of, const char* name, int count, int* dimensions) {
  const stored* found = store_find(of->tensors, name);
  int i;
  if (!found || found->type != NNR_FLOAT32 || found->dimension_count != (uint32_t)count)
    return NULL;
  for (i = 0; i < count; ++i) {
    if (dimensions[i] == 0 && found->dimensions[i] <= kDigitsValues)
      dimensions[i] = (int)found->dimensions[i];
    if ((uint64_t)dimensions[i] != found->dimensions[i]) return NULL;
  }
  return (const float*)found->data;
}

/* ---- Weights: one convolution, or several on factors --------------------------------------------
 */

/* A chain of convolutions that a weight comes to; they are run in order. */
typedef struct chain {
  taps steps[4];
  int count;
} chain;

static taps* next(chain* to, const float* values, int outputs, int inputs) {
  taps* step = &to->steps[to->count++];
  const taps made = {values, outputs, inputs, 1, 1, inputs, 1, 0, 0, 0};
  *step = made;
  return step;
}

/* A 1 x 1 convolution whose matrix stands as inputs x outputs. */
static void next_transposed(chain* to, const float* values, int outputs, int inputs) {
  taps* step = next(to, values, outputs, inputs);
  step->by_output = 1;
  step->by_input = outputs;
}

/* A convolution with the taps of the dense one. */
static void next_kernel(chain* to, const float* values, int outputs, int inputs,
                        const taps* dense) {
  taps* step = next(to, values, outputs, inputs);
  step->height = dense->height;
  step->width = dense->width;
  step->by_output = inputs * dense->height * dense->width;
  step->by_input = dense->height * dense->width;
  step->by_row = dense->width;
  step->by_column = 1;
}

/* G (T x r), H (r x S*taps): a convolution to r channels, and one of 1 x 1. */
static int low_rank(const run* of, const stored_weight* weight, const taps* dense, chain* to) {
  const int area = dense->height * dense->width;
  int g_shape[2] = {dense->outputs, 0}, h_shape[2];
  const float* g = elements(of, weight->factors[0], 2, g_shape);
  const float* h;
  h_shape[0] = g_shape[1];
  h_shape[1] = dense->inputs * area;
  h = g ? elements(of, weight->factors[1], 2, h_shape) : NULL;
  if (!h) return 0;
  next_kernel(to, h, g_shape[1], dense->inputs, dense);
  next(to, g, dense->outputs, g_shape[1]);
  return 1;
}

/* core (a x b x taps), U (T x a), V (S x b): 1 x 1, the core, 1 x 1. */
static int tucker(const run* of, const stored_weight* weight, const taps* dense, chain* to) {
  int core_shape[4] = {0, 0, dense->height, dense->width};
  int u_shape[2] = {dense->outputs, 0}, v_shape[2] = {dense->inputs, 0};
  const float* core = elements(of, weight->factors[0], 4, core_shape);
  const float *u, *v;
  u_shape[1] = core_shape[0];
  v_shape[1] = core_shape[1];
  u = core ? elements(of, weight->factors[1], 2, u_shape) : NULL;
  v = core ? elements(of, weight->factors[2], 2, v_shape) : NULL;
  if (!u || !v) return 0;
  next_transposed(to, v, core_shape[1], dense->inputs);
  next_kernel(to, core, core_shape[0], core_shape[1], dense);
  next(to, u, dense->outputs, core_shape[0]);
  return 1;
}

/* A (T x R), B (S x R), C (d1 x R), E (d2 x R): 1 x 1, down and across in each channel, 1 x 1. */
static int canonical(const run* of, const stored_weight* weight, const taps* dense, chain* to) {
  int shapes[4][2] = {
      {dense->outputs, 0}, {dense->inputs, 0}, {dense->height, 0}, {dense->width, 0}};
  const float* factors[4];
  int i, rank;
  taps* step;
  for (i = 0; i < 4; ++i) {
    shapes[i][1] = i ? shapes[0][1] : 0;
    factors[i] = elements(of, weight->factors[i], 2, shapes[i]);
    if (!factors[i]) return 0;
  }
  rank = shapes[0][1];
  next_transposed(to, factors[1], rank, dense->inputs);
  for (i = 2; i < 4; ++i) {
    step = next(to, factors[i], rank, rank);
    step->is_depthwise = 1;
    step->by_output = 1;
    step->height = i == 2 ? dense->height : 1;
    step->width = i == 3 ? dense->width : 1;
    step->by_row = step->by_column = rank;
  }
  next(to, factors[0], dense->outputs, rank);
  return 1;
}

/* U (S x a), L (a x d1 x b), N (b x c x d2), V (T x c): 1 x 1, down, across, 1 x 1. */
static int hierarchical(const run* of, const stored_weight* weight, const taps* dense, chain* to) {
  int l_shape[3] = {0, dense->height, 0}, n_shape[3] = {0, 0, dense->width};
  int u_shape[2] = {dense->inputs, 0}, v_shape[2] = {dense->outputs, 0};
  const float* l = elements(of, weight->factors[1], 3, l_shape);
  const float *n, *u, *v;
  taps* step;
  n_shape[0] = l_shape[2];
  n = l ? elements(of, weight->factors[2], 3, n_shape) : NULL;
  u_shape[1] = l_shape[0];
  v_shape[1] = n_shape[1];
  u = n ? elements(of, weight->factors[0], 2, u_shape) : NULL;
  v = n ? elements(of, weight->factors[3], 2, v_shape) : NULL;
  if (!u || !v) return 0;
  next_transposed(to, u, l_shape[0], dense->inputs);
  step = next(to, l, l_shape[2], l_shape[0]);
  step->height = dense->height;
  step->by_output = 1;
  step->by_input = dense->height * l_shape[2];
  step->by_row = l_shape[2];
  step = next(to, n, n_shape[1], n_shape[0]);
  step->width = dense->width;
  step->by_output = dense->width;
  step->by_input = n_shape[1] * dense->width;
  step->by_column = 1;
  next(to, v, dense->outputs, n_shape[1]);
  return 1;
}

/* What a weight comes to. `dense`: its sizes, in which its elements come to lie. */
static int chain_of(const run* of, const char* name, taps* dense, chain* to) {
  const stored_weight* weight = store_find_weight(of->tensors, name);
  int shape[4];
  shape[0] = dense->outputs;
  shape[1] = dense->inputs;
  shape[2] = dense->height;
  shape[3] = dense->width;
  to->count = 0;
  if (store_find(of->tensors, name)) {
    dense->values = elements(of, name, dense->height == 1 ? 2 : 4, shape);
    to->steps[to->count++] = *dense;
    return dense->values != NULL;
  }
  if (!weight) return 0;
  switch (weight->form) {
    case NNR_LR:
      return low_rank(of, weight, dense, to);
    case NNR_TUCKER2:
      return tucker(of, weight, dense, to);
    case NNR_CP:
      return canonical(of, weight, dense, to);
    case NNR_HT2:
      return hierarchical(of, weight, dense, to);
    default:
      return 0;
  }
}

/* Runs a weight on maps, which change their place in the workspace with each step. */
static int run_weight(const run* of, const char* name, int outputs, int width, maps* at) {
  taps dense = {
      NULL, outputs, at->channels, width, width, at->channels * width * width, width * width, width,
      1,    0};
  chain steps;
  int i;
  if (!chain_of(of, name, &dense, &steps)) return 0;
  for (i = 0; i < steps.count; ++i) {
    maps out = {of->space->maps[at->values == of->space->maps[0]], 0, 0};
    if (steps.steps[i].outputs * at->side * at->side > kDigitsValues) return 0;
    convolve(of, at, &steps.steps[i], &out);
    *at = out;
  }
  return 1;
}

/* ---- The rest of the network --------------------------------------------------------------------
 */

/* Of each layer its weight, and those of the batch normalization behind it. */
enum { kLayers = 3 };
static const char* const kWeights[kLayers] = {"conv1.weight", "conv2.weight", "conv3.weight"};
static const char* const kNorms[kLayers][4] = {
    {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"},
    {"bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"},
    {"bn3.weight", "bn3.bias", "bn3.running_mean", "bn3.running_var"}};

/* Elements of a vector; 0 if it is not there. */
static int vector_size(const run* of, const char* name) {
  int size = 0;
  return elements(of, name, 1, &size) ? size : 0;
}

static int normalize(const run* of, const char* const* names, maps* at) {
  const float* by[4];
  int i, c, p;
  for (i = 0; i < 4; ++i) {
    by[i] = elements(of, names[i], 1, &at->channels);
    if (!by[i]) return 0;
  }
  for (c = 0; c < at->channels; ++c) {
    const float scale = by[0][c] / sqrtf(by[3][c] + kEpsilon);
    const float shift = by[1][c] - by[2][c] * scale;
    float* map = at->values + c * at->side * at->side;
    for (p = 0; p < at->side * at->side; ++p) {
      const float value = map[p] * scale + shift;
      map[p] = value > 0 ? value : 0; /* ReLU */
    }
  }
  return 1;
}

static float larger(float a, float b) { return a > b ? a : b; }

/* Takes the largest of each 2 x 2 square. */
static void pool(maps* at) {
  const int half = at->side / 2;
  int c, y, x;
  for (c = 0; c < at->channels; ++c)
    for (y = 0; y < half; ++y)
      for (x = 0; x < half; ++x) {
        const float* from = at->values + (c * at->side + 2 * y) * at->side + 2 * x;
        at->values[(c * half + y) * half + x] =
            larger(larger(from[0], from[1]), larger(from[at->side], from[at->side + 1]));
      }
  at->side = half;
}

const char* digits_outputs(const store* tensors, const float* pixels, digits_workspace* space,
                           float* outputs, uint64_t* multiplications) {
  const run of = {tensors, space, multiplications};
  maps at = {space->maps[0], 1, kDigitsSide};
  int ten = kDigits, i;
  const float* bias = elements(&of, "fc.bias", 1, &ten);
  for (i = 0; i < kDigitsPixels; ++i) at.values[i] = pixels[i] / 16;
  for (i = 0; i < kLayers; ++i) {
    const int channels = vector_size(&of, kNorms[i][0]);
    if (!channels || !run_weight(&of, kWeights[i], channels, kTaps, &at)) return kWeights[i];
    if (!normalize(&of, kNorms[i], &at)) return kNorms[i][0];
    if (i > 0) pool(&at);
  }
  at.channels *= at.side * at.side;
  at.side = 1;
  if (!run_weight(&of, "fc.weight", kDigits, 1, &at)) return "fc.weight";
  if (!bias) return "fc.bias";
  for (i = 0; i < kDigits; ++i) outputs[i] = at.values[i] + bias[i];
  return NULL;
}
