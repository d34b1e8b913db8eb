// Tensors of a long list whose op is short: handles without the shared counts of torch::stable::Tensor, and what is
// asked of each, asked once.
#pragma once

#include "checks.h"

namespace maskcl {

// A list argument of an op, owned.
class Handles {
 public:
  explicit Handles(size_t count) { at_.reserve(count); }
  Handles(Handles&& other) noexcept = default;
  ~Handles() {
    for (AtenTensorHandle handle : at_) aoti_torch_delete_tensor_object(handle);
  }
  void push_back(AtenTensorHandle handle) { at_.push_back(handle); }
  size_t size() const { return at_.size(); }
  bool empty() const { return at_.empty(); }
  AtenTensorHandle operator[](size_t t) const { return at_[t]; }

  // A tensor that shares ownership.
  Tensor tensor(size_t t) const {
    AtenTensorHandle copy;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(at_[t], &copy));
    return Tensor(copy);
  }

 private:
  std::vector<AtenTensorHandle> at_;
};

// Shape, order and dtype of a tensor that outlives it.
struct View {
  void* data;
  const int64_t *sizes, *strides;
  int64_t dim, numel;
  int32_t dtype;  // torch's number for it
  bool contiguous;

  View() = default;
  explicit View(AtenTensorHandle handle) {
    int64_t *found_sizes, *found_strides;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle, &data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dim));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &found_sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &found_strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle, &contiguous));
    sizes = found_sizes;
    strides = found_strides;
    numel = 1;
    for (int64_t d = 0; d < dim; ++d) numel *= sizes[d];
  }
  bool has_shape_of(const View& other) const {
    return dim == other.dim && std::equal(sizes, sizes + dim, other.sizes);
  }
  // Of one shape.
  bool has_strides_of(const View& other) const {
    for (int64_t d = 0; d < dim; ++d)
      if (sizes[d] != 1 && strides[d] != other.strides[d]) return false;
    return true;
  }
};

// The dtype of torch's number for it, which has to be a floating one.
inline ScalarType floating(const char* op, int32_t dtype) {
  static const int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64(),
                       bf16 = aoti_torch_dtype_bfloat16(), f16 = aoti_torch_dtype_float16();
  if (dtype == f32) return ScalarType::Float;
  if (dtype == bf16) return ScalarType::BFloat16;
  if (dtype == f16) return ScalarType::Half;
  MASKCL_CHECK(dtype == f64, op, ": found a dtype that is not floating, wanted float32, bfloat16, float16 or float64");
  return ScalarType::Double;
}

}  // namespace maskcl

namespace torch::stable::detail {

template <>
struct ToImpl<maskcl::Handles> {
  static maskcl::Handles call(StableIValue value, uint64_t, bool) {
    const auto list = to<StableListHandle>(value);
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    maskcl::Handles handles(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue element;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &element));
      handles.push_back(to<AtenTensorHandle>(element));
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(list));
    return handles;
  }
};

}  // namespace torch::stable::detail
