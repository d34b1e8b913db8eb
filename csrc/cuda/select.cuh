// Which mask a score gives, as the kernels take it.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

template <typename C>
struct Select {
  Scalar<C> threshold;  // "topk": the k-th largest magnitude, read by the kernel where it is on the device
  C scale;
  Levels levels;
};

// `scores` are the caller's, whose dtype the threshold is rounded to; `typed` keeps a converted kth alive until the launch.
template <typename C>
Select<C> select_of(const char* op, const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels,
                    double threshold, bool inclusive, double scale, Tensor& typed) {
  const Levels parsed = parse_levels(levels, inclusive);
  threshold = threshold_for(scores.scalar_type(), parsed, threshold);
  Select<C> p{{nullptr, static_cast<C>(threshold)}, static_cast<C>(scale), parsed};
  if (p.levels != Levels::topk) return p;
  MASKCL_CHECK(kth.has_value(), op, ": levels 'topk' needs kth");
  p.threshold = scalar_of<C>(op, "kth", *kth, scores, typed);
  return p;
}

}  // namespace maskcl::gpu
