// Constant tables of the format (spec/bitstream.md, "Probability models" and "Dependent
// quantization"). Standard library only, so that a device can compile the decoding side alone.
//
// With NNR_SMALL_TABLES defined all else is computed from these: slower, and 5 KiB smaller.
#pragma once

#include <cstdint>

namespace nnr {

// State transition of a probability model: step for a state that lies in bucket 0..31, from
// strongly against the bin (0) to strongly for it (31).
inline constexpr uint16_t kStateStep[32] = {
    2512, 2288, 2064, 1840, 1616, 1392, 1168, 944, 720, 560, 464, 368, 272, 208, 144, 80,
    64,   64,   64,   64,   64,   64,   64,   64,  64,  64,  64,  64,  64,  64,  64,  0};

// Width of the less probable symbol's interval: row (range >> 5) & 7, column |S >> 7|.
inline constexpr uint8_t kLpsRange[8][32] = {
    {128, 112, 97, 84, 74, 65, 57, 50, 45, 39, 34, 30, 27, 23, 20, 18,
     15,  14,  12, 11, 10, 9,  7,  7,  5,  5,  4,  4,  3,  3,  2,  2},
    {142, 125, 108, 93, 82, 72, 63, 56, 50, 43, 38, 33, 30, 26, 22, 20,
     17,  16,  13,  12, 11, 10, 8,  8,  6,  6,  5,  5,  3,  3,  2,  2},
    {156, 137, 119, 103, 90, 79, 70, 61, 55, 48, 42, 37, 33, 28, 24, 22,
     19,  17,  15,  13,  12, 11, 9,  9,  6,  6,  5,  5,  4,  4,  2,  2},
    {171, 150, 130, 112, 99, 87, 76, 67, 60, 52, 46, 40, 36, 31, 27, 24,
     21,  19,  16,  15,  13, 12, 10, 10, 7,  7,  6,  6,  4,  4,  3,  3},
    {185, 162, 141, 121, 107, 94, 82, 73, 65, 56, 50, 43, 39, 34, 29, 26,
     22,  21,  17,  16,  14,  13, 11, 11, 8,  8,  6,  6,  4,  4,  3,  3},
    {199, 175, 152, 131, 115, 101, 89, 78, 70, 61, 54, 47, 42, 36, 31, 28,
     24,  22,  19,  17,  15,  14,  12, 12, 8,  8,  7,  7,  5,  5,  3,  3},
    {213, 187, 163, 140, 123, 108, 95, 84, 75, 65, 58, 50, 45, 39, 33, 30,
     26,  24,  20,  18,  16,  15,  13, 13, 9,  9,  7,  7,  5,  5,  3,  3},
    {228, 200, 174, 150, 132, 116, 102, 90, 80, 70, 62, 54, 48, 42, 36, 32,
     28,  26,  22,  20,  18,  16,  14,  14, 10, 10, 8,  8,  6,  6,  4,  4}};

// The pairs of adaptation shifts: applied to the step of the 8-bit state, and of the 12-bit one.
inline constexpr int kShiftPairCount = 4;
inline constexpr uint8_t kShiftPairs[kShiftPairCount][2] = {{5, 4}, {4, 5}, {6, 6}, {7, 5}};

// What an initialization index 0..8 sets: adaptation shifts of both states, and the states.
struct ModelInitialization {
  uint8_t shift_pair;
  int16_t combined;    // 16 * fast state + slow state
  int16_t fast_state;
};

inline constexpr int kInitializationCount = 9;
inline constexpr ModelInitialization kInitialization[kInitializationCount] = {
    {0, 0, 0},     {0, -1310, -41}, {0, 3039, 95}, {1, 0, 0},  {2, 962, 30},
    {2, 3039, 95}, {2, -673, -21},  {3, 0, 0},     {3, 962, 30}};

// Dependent quantization: the next state by state and parity of the coded integer.
inline constexpr int kDqStates = 8;
inline constexpr uint8_t kNextState[kDqStates][2] = {{0, 2}, {7, 5}, {1, 3}, {6, 4},
                                                     {2, 0}, {5, 7}, {3, 1}, {4, 6}};

}  // namespace nnr
