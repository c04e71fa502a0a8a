/* The folder that nnrdec writes. */
#ifndef NNRDEC_OUTPUT_H
#define NNRDEC_OUTPUT_H

#include <stdio.h>

#include "../nnr.h"

enum { kDone = 0, kFailure = 1, kUsage = 2, kBadBitstream = 3 }; /* exit codes */
enum { kBufferBytes = 1 << 16, kBuckets = 1 << 12 };

/* A tensor of the model, as the streams until now make it, or as the latest one leaves it. */
typedef struct version {
  nnr_role role;
  nnr_type type;
  char* shape;           /* as tensors.json has it */
  struct entry* tied_to; /* of ties */
  unsigned file;         /* its number */
} version;

typedef struct entry {
  struct entry* next;  /* in the order of the list */
  struct entry* chain; /* with a hash of the same bucket */
  char* name;
  int is_there, is_changed; /* `now` counts; `then` will, when the stream ends */
  version now, then;
  int is_weight, is_factor; /* of those that the model map makes of factors, which are listed */
} entry;

typedef struct output {
  const char* folder; /* under its final name when all is complete */
  char* partial;
  entry *first, *last;
  entry* buckets[kBuckets];
  unsigned files;
  int has_products; /* or factors, under other names than those that updates have for them */
} output;

/* A bitstream whose tensors come. */
typedef struct input {
  const char* name; /* of its file */
  nnr_decoder* decoder;
  int is_factorized; /* the factors of weights are handed out */
} input;

/* Say on standard error what is wrong; they return the exit code. */
int complain(int code, const char* what, const char* why);
int complain_of_tensor(const char* file, const char* tensor, const char* why);
int complain_of_stream(const input* from);

/* Begins a folder, which must not exist. close_output is to be called whatever this returns. */
int open_output(output* out, const char* folder);
/* Decodes a tensor to a file, or adds it to that of the streams before; the buffer has
   kBufferBytes. It counts once end_stream is called. */
int put_tensor(output* out, const input* from, const nnr_tensor* tensor, void* buffer);
/* The stream whose tensors came is at its end, and good; or, by another code than kDone, what it
   did is undone. Returns the code, or what is wrong with the model. */
int end_stream(output* out, const input* from, int code);
/* Writes the list, and gives the folder its name; or, if the code is not kDone, removes it all. */
int close_output(output* out, int code);

#endif
