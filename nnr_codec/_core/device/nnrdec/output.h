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
  int is_there,
      is_changed; /* `now` counts; `then` does, and takes its place when the stream ends */
  version now, then;
} entry;

typedef struct output {
  const char* folder; /* under its final name when all is complete */
  char* partial;
  entry *first, *last;
  entry* buckets[kBuckets];
  unsigned files;
  int has_products; /* or factors, under other names than those that updates have for them */
} output;

/* Say on standard error what is wrong; they return the exit code. */
int complain(int code, const char* what, const char* why);
int complain_of_stream(const char* file, const nnr_error* error);

/* Begins a folder, which must not exist. close_output is to be called whatever this returns. */
int open_output(output* out, const char* folder);
/* Decodes a tensor of the stream `name` to a file, or adds it to that of the streams before; the
   buffer has kBufferBytes. It counts once end_stream is called. */
int put_tensor(output* out, nnr_decoder* decoder, const nnr_tensor* tensor, void* buffer,
               const char* name);
/* The stream whose tensors came is at its end, and good: or not, and what it did is undone. */
void end_stream(output* out, int is_good);
/* Writes the list, and gives the folder its name; or, if the code is not kDone, removes it all. */
int close_output(output* out, int code);

#endif
