// What a build of the library has. Each is 1 unless the compiler is told otherwise; what is left
// out is refused as unsupported (or, floats, not given).
#pragma once

// Elements as floats; without it quantized tensors come as integers with their step alone.
#ifndef NNR_WITH_FLOATS
#define NNR_WITH_FLOATS 1
#endif

// Decomposed weights of BLOCK units (DC), and their products.
#ifndef NNR_WITH_DC
#define NNR_WITH_DC 1
#endif

// Parents: temporal and history contexts, and the series that they come from.
#ifndef NNR_WITH_UPDATES
#define NNR_WITH_UPDATES 1
#endif

// The model map (spec/model_map.md). Without it a stream that has one gives what is coded.
#ifndef NNR_WITH_MAP
#define NNR_WITH_MAP 1
#endif

// Texts of errors; without them they are empty.
#ifndef NNR_WITH_TEXTS
#define NNR_WITH_TEXTS 1
#endif

#if NNR_WITH_MAP && !(NNR_WITH_DC && NNR_WITH_FLOATS)
#error "NNR_WITH_MAP needs NNR_WITH_DC and NNR_WITH_FLOATS"
#endif
