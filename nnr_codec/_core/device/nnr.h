/* A decoder for NNR bitstreams (ISO/IEC 15938-17), for devices: C99.

   README.md beside this file has an example, the memory that decoding takes, and build options. */
#ifndef NNR_H
#define NNR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface. A library takes the options of its own version alone. */
#define NNR_VERSION 2

/* What a call came to. From NNR_INVALID on, decoding cannot go on: close the decoder. */
typedef enum nnr_status {
  NNR_OK = 0,
  NNR_END = 1,            /* the bitstream is complete, and all of it is valid */
  NNR_NEED_INPUT = 2,     /* of fed decoders: feed more bytes, then call again */
  NNR_USAGE = 3,          /* the call or its arguments make no sense here; nothing has happened */
  NNR_INVALID = 4,        /* the bitstream breaks the format */
  NNR_TRUNCATED = 5,      /* it ends, or a unit of it, before what it announces */
  NNR_UNSUPPORTED = 6,    /* it uses what this library, or this build of it, does not have */
  NNR_LIMIT = 7,          /* it asks for more than a limit allows */
  NNR_MISSING_PARENT = 8, /* it needs an earlier bitstream of its series */
  NNR_OUT_OF_MEMORY = 9,  /* the caller's function gave no memory */
  NNR_INPUT_FAILED = 10,  /* the caller's function could not read */
  NNR_CANCELLED = 11,     /* the caller's function said so */
  NNR_CUT = 12            /* it ends in a quality layer behind the first: those before are good */
} nnr_status;

/* Element types. Elements in memory have the byte order of the processor. */
typedef enum nnr_type {
  NNR_BOOL, /* one byte, 0 or 1 */
  NNR_INT8,
  NNR_INT16,
  NNR_INT32,
  NNR_INT64,
  NNR_UINT8,
  NNR_UINT16,
  NNR_UINT32,
  NNR_UINT64,
  NNR_FLOAT16,
  NNR_BFLOAT16,
  NNR_FLOAT32,
  NNR_FLOAT64,
  NNR_FLOAT8_E4M3FN,
  NNR_FLOAT8_E4M3FNUZ,
  NNR_FLOAT8_E5M2,
  NNR_FLOAT8_E5M2FNUZ,
  NNR_FLOAT8_E8M0FNU,
  NNR_INTEGERS /* int32 without the step: see nnr_read */
} nnr_type;

/* What a tensor is in its layer. */
typedef enum nnr_role {
  NNR_WEIGHT, /* and any tensor that has a data unit of its own */
  NNR_FACTOR_G,
  NNR_FACTOR_H,
  NNR_LOCAL_SCALING,
  NNR_BETA,
  NNR_GAMMA,
  NNR_MEAN,
  NNR_VAR,
  NNR_BIAS,
  NNR_PRODUCT, /* of factors */
  NNR_TIED,    /* the values of another tensor, `tied_to`: nothing to read */
  NNR_EMPTY,   /* one of its dimensions is 0: nothing to read */
  NNR_REMOVED  /* of an update: the new model has it no more: nothing to read */
} nnr_role;

/* What the elements of an update do to the tensor of that name which the base has, if it has one
   (spec/model_map.md, "Updates of a base"). Of what is no update they are values. */
typedef enum nnr_change {
  NNR_VALUES,      /* they take its place */
  NNR_ADDED,       /* they are added to it: nnr_add */
  NNR_CHANGED_BITS /* they say which of its bits change: nnr_add */
} nnr_change;

/* Which of decomposed weights are handed out. */
typedef enum nnr_layers { NNR_DENSE, NNR_FACTORIZED } nnr_layers;

/* The caller's memory. `allocate` gives memory for any type, or null; `release` gets it back, with
   its size. All memory is allocated through these, and all is released by nnr_close and
   nnr_series_close. */
typedef struct nnr_memory {
  void* context;
  void* (*allocate)(void* context, size_t size);
  void (*release)(void* context, void* memory, size_t size);
} nnr_memory;

/* What a bitstream may ask for (spec/limits.md), each quality layer by itself; nnr_default_options
   has the defaults. */
typedef struct nnr_limits {
  uint64_t elements_per_tensor;
  uint64_t elements;
  uint64_t units;
  uint64_t stream_bytes;
  uint64_t unit_bytes;
  uint64_t name_bytes;
  uint64_t dimensions; /* no more than 32 */
  uint64_t product_operations;
  uint64_t all_product_operations;
  uint64_t header_entries;
  uint64_t topology_bytes;
} nnr_limits;

typedef struct nnr_decoder nnr_decoder;
typedef struct nnr_series nnr_series;

/* What stays in the series of the bitstream's integers. */
typedef enum nnr_keep {
  NNR_KEEP_NOTHING,
  NNR_KEEP_FOR_LAYERS, /* those of quality layers that another one follows */
  NNR_KEEP             /* all: a later bitstream of the series may need them */
} nnr_keep;

typedef struct nnr_options {
  uint32_t version; /* NNR_VERSION */
  nnr_layers layers;
  nnr_memory memory;
  nnr_limits limits;
  /* The series to which the bitstream belongs, or null. It outlives the decoder. */
  nnr_series* series;
  nnr_keep keep;
  /* Whether it is decoded for what it leaves in the series alone, as a parent: then the tensors of
     an update are differences, and its base need not be there. */
  int is_parent;
  /* Asked every 65536 elements and at each unit, if it is not null: other than 0 ends decoding. */
  int (*is_cancelled)(void* context);
  void* cancel_context;
} nnr_options;

/* One tensor. Pointers are valid until the next call of nnr_next_tensor or nnr_close. */
typedef struct nnr_tensor {
  const char* name; /* UTF-8, ended by a zero */
  nnr_role role;
  nnr_type type; /* of its elements */
  uint32_t dimension_count;
  const uint64_t* dimensions;
  uint64_t elements; /* product of the dimensions: 1 for a scalar, which has none */
  /* Step of the integers: each element is its integer times this, in binary32. 0 if it has no
     integers of this kind. */
  float step;
  uint64_t row_elements; /* elements of a row: a natural number of them to read at a time */
  const char* tied_to;   /* of NNR_TIED: a tensor that was handed out before; else null */
  nnr_change change;
} nnr_tensor;

/* How a weight is made of its factors (spec/model_map.md, "Factored weights"). */
typedef enum nnr_form {
  NNR_LR,
  NNR_CP,
  NNR_TUCKER2,
  NNR_HT2,
  NNR_JOINT_RIGHT,
  NNR_JOINT_LEFT,
  NNR_JOINT_BINARY
} nnr_form;

/* A weight that the model map makes of tensors. Pointers are valid until nnr_close, or the next
   call of nnr_next_layer. */
typedef struct nnr_weight {
  const char* name;
  nnr_form form;
  nnr_type type; /* of the product */
  uint32_t dimension_count;
  const uint64_t* dimensions;
  uint32_t factor_count;
  const char* factors[4]; /* names of tensors, in the order that the form has them */
} nnr_weight;

/* Where and why decoding ended. */
typedef struct nnr_error {
  nnr_status status;
  uint32_t unit;        /* index of the unit, from 0 on; of a quality layer, within it */
  uint64_t byte_offset; /* bytes from the bitstream's start; exact in headers, else the unit's */
  const char* text;     /* in English; it lives as long as the library */
} nnr_error;

/* Reads up to `size` bytes into `buffer`; returns their number, 0 at the end, or SIZE_MAX if that
   failed. */
typedef size_t (*nnr_read_function)(void* context, void* buffer, size_t size);

/* Sets all options to their defaults: dense, the limits of spec/limits.md. `memory` is for the
   caller to set. */
void nnr_default_options(nnr_options* options);

/* Bytes that a decoder and a series take in memory of the caller's, aligned as malloc aligns. */
size_t nnr_decoder_size(void);
size_t nnr_series_size(void);

/* Opens a bitstream in `place`, nnr_decoder_size() bytes. Nothing is decoded yet.
   Returns null if an argument is missing, or the options have another version.

   nnr_open_memory: all of it lies in memory, and stays there until nnr_close; nothing is copied.
   nnr_open_reader: the function is called for more bytes. A unit at a time is kept in memory.
   nnr_open_feed: the caller gives bytes to nnr_feed as they come. Likewise. */
nnr_decoder* nnr_open_memory(void* place, const nnr_options* options, const void* data,
                             size_t size);
nnr_decoder* nnr_open_reader(void* place, const nnr_options* options, nnr_read_function read,
                             void* context);
nnr_decoder* nnr_open_feed(void* place, const nnr_options* options);

/* Gives a fed decoder the next bytes, of which it takes as many as its unit still needs, and
   returns their number: the others are to be given again when nnr_next_tensor needs them. */
size_t nnr_feed(nnr_decoder* decoder, const void* data, size_t size);
/* Tells a fed decoder that there are no more bytes. */
void nnr_feed_end(nnr_decoder* decoder);

/* Goes on to the next tensor, and describes it. What was not read of the one before is passed
   over. Tensors come in the order in which they are coded, products behind their factors, tied,
   empty and removed ones at the end.
   Returns NNR_OK, NNR_END (then, and only then, all was valid, and the series has it),
   NNR_NEED_INPUT, or an error. */
nnr_status nnr_next_tensor(nnr_decoder* decoder, nnr_tensor* tensor);

/* Decodes the next `count` elements of the tensor, in row-major order, to `elements`.
   type: the tensor's own; or NNR_FLOAT32, NNR_FLOAT16, NNR_BFLOAT16, to which its own is rounded
   (to nearest, ties to even; too large becomes infinite); or, if the tensor has a step,
   NNR_INTEGERS: int32, each times the step the element.
   `elements` is aligned for that type. Values count only once NNR_OK came for the whole tensor, as
   its end shows whether the codeword is damaged. Returns NNR_USAGE if there are not so many. */
nnr_status nnr_read(nnr_decoder* decoder, nnr_type type, void* elements, uint64_t count);

/* Decodes the next `count` elements of the tensor, whose `change` is not NNR_VALUES, and adds them
   to those of the base, which `elements` holds; `type` is that of the base's tensor. Otherwise as
   nnr_read. */
nnr_status nnr_add(nnr_decoder* decoder, nnr_type type, void* elements, uint64_t count);

/* Quality layers: a file of several bitstreams, the first a coarse model, each other one an update
   of those before. The decoder has a series, and keeps for layers. After NNR_END of one layer:
   NNR_OK: the next one's tensors come; NNR_END: there is no other; NNR_NEED_INPUT: whether there
   is one shows with more bytes, or nnr_feed_end; NNR_USAGE: the layer is not at its end; or an
   error. What nnr_next_tensor ends with NNR_CUT belongs to no layer that is whole. */
nnr_status nnr_next_layer(nnr_decoder* decoder);

/* The number of quality layers, 1 without; known once there was a tensor. `sizes`: bytes of each,
   valid until the next call of nnr_next_layer; null without. */
uint32_t nnr_quality_layers(nnr_decoder* decoder, const uint64_t** sizes);

/* The weight of number `index`, from 0 on, of those that the model map makes of factors. With
   NNR_FACTORIZED the factors are handed out, and this tells what they are for. Known once there was
   a tensor. NNR_OK; NNR_END: there are not so many. (What is decomposed without a map has the roles
   NNR_FACTOR_G and NNR_FACTOR_H.) */
nnr_status nnr_factored_weight(const nnr_decoder* decoder, uint32_t index, nnr_weight* weight);

/* Whether the bitstream is an update of a base, as the model map says; known once there was a
   tensor. Its series has the base: the decoders of those streams kept all. The digest of the base's
   model, and the order of the new one, are not looked at. */
int nnr_is_update(const nnr_decoder* decoder);

/* Bytes of an element. */
size_t nnr_type_size(nnr_type type);
/* numpy's name of it, such as "float32". */
const char* nnr_type_name(nnr_type type);

/* The last error; its status is NNR_OK if there was none. Valid until nnr_close. */
const nnr_error* nnr_last_error(const nnr_decoder* decoder);

/* Releases all memory. */
void nnr_close(nnr_decoder* decoder);

/* Opens an empty series in `place`, nnr_series_size() bytes; null in a build without updates. After
   an error of a decoder that keeps its integers in it, NNR_CUT included, it is of no further use but
   to be closed. */
nnr_series* nnr_series_open(void* place, const nnr_memory* memory);
void nnr_series_close(nnr_series* series);

#ifdef __cplusplus
}
#endif

#endif
