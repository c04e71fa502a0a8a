#include "map_values.h"

namespace nnr::device {

namespace {

constexpr int64_t kMaxProduct = int64_t{1} << 40;  // of the dimensions that are not 0
constexpr uint32_t kMaxShape = 32;

}  // namespace

bool MapReader::read_type(nnr_type& type) {
  Text name;
  if (!json.read_text(name)) return false;
  const int number = type_of_name(name.data, name.size);
  if (number == kTypeCount) return fail("the model map has an unknown dtype");
  type = static_cast<nnr_type>(number);
  return true;
}

bool MapReader::read_shape(Shape& shape) {
  if (!json.begin_array()) return false;
  int64_t dimensions[kMaxShape] = {};
  int64_t product = 1;
  bool is_first = true;
  while (json.next_item(is_first)) {
    if (shape.count == kMaxShape || shape.count >= limits.dimensions)
      return fail("a shape of the model map has too many dimensions");
    int64_t& size = dimensions[shape.count++];
    if (!json.read_whole(size)) return false;
    if (size < 0 || size > kMaxProduct) return fail("a dimension of the model map is out of range");
    if (size && product > kMaxProduct / size)
      return fail("the dimensions of a shape are too large together");
    if (size) product *= size;
  }
  if (!json.ok()) return false;
  shape.dimensions = arena.make_array<uint64_t>(shape.count);
  if (!shape.dimensions) return failure.no_memory();
  for (uint32_t i = 0; i < shape.count; ++i)
    shape.dimensions[i] = static_cast<uint64_t>(dimensions[i]);
  return true;
}

bool MapReader::add_name(const Text& name, NamedTensor*& tensor) {
  if (name.size > limits.name_bytes || (name.size && std::memchr(name.data, 0, name.size)))
    return fail("a name of the model map is too long or has a zero character");
  tensor = names.find_or_add(name);
  return tensor || failure.no_memory();
}

bool MapReader::read_name(NamedTensor*& tensor) {
  Text name;
  return json.read_text(name) && add_name(name, tensor);
}

}  // namespace nnr::device
