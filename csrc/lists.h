// Lists of tensors that are walked together, entry by entry in one order of memory.
#pragma once

#include <utility>

#include "checks.h"

namespace maskcl {

template <typename List>
void check_lists(const char* op, const List& tensors, const List& others) {
  MASKCL_CHECK(tensors.size() == others.size(), op, ": found lists of ", tensors.size(), " and ", others.size(),
               " tensors, wanted one length");
}

// What gives the order in which an entry's tensors are walked.
inline Tensor order_from(const Tensor& x) { return is_dense(x) ? x : torch::stable::contiguous(x); }

// Tensors that are written: where one does not lie in the order asked for, a copy that finish() writes back.
class Written {
 public:
  Tensor in_order(const Tensor& original, const Tensor& like) {
    const Tensor used = in_order_of(original, like);
    if (!same_strides(original, like)) copies_.emplace_back(original, used);
    return used;
  }
  void finish() {
    for (auto& [original, copy] : copies_) torch::stable::copy_(original, copy);
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> copies_;
};

}  // namespace maskcl
