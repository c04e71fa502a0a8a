// The binary64 number nearest to a decimal text, without the C library.
#pragma once

#include "../support/utf8.h"

namespace nnr::device {

// `text`: a number of JSON. Numbers below 2^-200 in magnitude become 0, those from 2^200 on
// infinite: nothing of a model map is as large or as small.
double decimal_value(const Text& text);

}  // namespace nnr::device
