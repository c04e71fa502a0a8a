/* The folder that nnrdec writes. */
#ifndef NNRDEC_OUTPUT_H
#define NNRDEC_OUTPUT_H

#include <stdio.h>

#include "../nnr.h"

enum { kDone = 0, kFailure = 1, kUsage = 2, kBadBitstream = 3 }; /* exit codes */
enum { kBufferBytes = 1 << 16 };

/* A line of tensors.json behind the name, for tensors that are tied to this one. */
typedef struct written {
  struct written* next;
  char* name;
  char* rest;
} written;

typedef struct output {
  const char* folder; /* under its final name when all is complete */
  char* partial;
  FILE* list;
  written* tensors;
  unsigned files;
} output;

/* Say on standard error what is wrong; they return the exit code. */
int complain(int code, const char* what, const char* why);
int complain_of_stream(const char* file, const nnr_error* error);

/* Begins a folder, which must not exist. close_output is to be called whatever this returns. */
int open_output(output* out, const char* folder);
/* Decodes a tensor of the stream `name` to a file; the buffer has kBufferBytes. */
int write_tensor(output* out, nnr_decoder* decoder, const nnr_tensor* tensor, void* buffer,
                 const char* name);
/* Notes a tensor that is tied to another one: it has that one's file. */
int write_tie(output* out, const nnr_tensor* tensor);
/* Gives the folder its name; or, if the code is not kDone, removes all of it. */
int close_output(output* out, int code);

#endif
