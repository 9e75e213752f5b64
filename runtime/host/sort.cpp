#include "host/sort.h"

#include <algorithm>
#include <vector>

#include "host/lines.h"

namespace etcuda {
namespace {

template <typename T>
struct Element {
  Wide<T> key;
  int64_t index;
};

// A strict order on distinct elements: equal keys by their place.
template <typename T, bool kDescending>
bool precedes(const Element<T>& a, const Element<T>& b) {
  const auto& first = kDescending ? b : a;
  const auto& second = kDescending ? a : b;
  if (first.key < second.key || (is_nan(second.key) && !is_nan(first.key))) return true;
  if (second.key < first.key || (is_nan(first.key) && !is_nan(second.key))) return false;
  return a.index < b.index;
}

// The first `k` of every line of `self`, into the first `k` of every line of `out`.
template <typename T, bool kDescending>
void sort_lines(const Tensor& self, const Dim& dim, int64_t k, const Sorted& out) {
  const int64_t stride = stride_along(self, dim);
  const int64_t values_stride = stride_along(*out.values, dim);
  const int64_t indices_stride = stride_along(*out.indices, dim);
  std::vector<Element<T>> line(static_cast<size_t>(dim.size));
  for_each_line<3>(
      self, dim, {&self, out.values.get(), out.indices.get()}, [&](const std::array<int64_t, 3>& offsets) {
        const T* from = self.data_as<T>() + offsets[0];
        T* values = out.values->data_as<T>() + offsets[1];
        auto* indices = out.indices->data_as<int64_t>() + offsets[2];
        for (int64_t i = 0; i < dim.size; ++i) {
          line[static_cast<size_t>(i)] = {widen(from[i * stride]), i};
        }
        // A heap pays for few of many.
        if (k < dim.size / 16) {
          std::partial_sort(line.begin(), line.begin() + k, line.end(), precedes<T, kDescending>);
        } else {
          std::sort(line.begin(), line.end(), precedes<T, kDescending>);
        }
        for (int64_t i = 0; i < k; ++i) {
          const int64_t index = line[static_cast<size_t>(i)].index;
          values[i * values_stride] = from[index * stride];
          indices[i * indices_stride] = index;
        }
      });
}

void sort_into(const char* op, const Tensor& self, const Dim& dim, int64_t k, bool descending,
               const Sorted& out) {
  if (self.numel() == 0 || k == 0) return;
  with_type(op, self.dtype, [&](auto zero) {
    using T = decltype(zero);
    descending ? sort_lines<T, true>(self, dim, k, out) : sort_lines<T, false>(self, dim, k, out);
  });
}

}  // namespace

Sorted host_sort(const Tensor& self, int64_t dim, bool descending) {
  const Dim along = dim_of("sort", self, dim);
  Sorted out{dense_like(self, self.dtype), dense_like(self, kInt64)};
  sort_into("sort", self, along, along.size, descending, out);
  return out;
}

Sorted host_topk(const Tensor& self, int64_t k, int64_t dim, bool largest) {
  const Dim along = dim_of("topk", self, dim);
  if (k < 0 || k > along.size) {
    fail(ErrorCode::InvalidArgument, "topk: expected k from 0 to the size of the dimension, %lld, got %lld.",
         static_cast<long long>(along.size), static_cast<long long>(k));
  }
  auto sizes = self.sizes;
  sizes[static_cast<size_t>(along.index)] = k;
  Sorted out{contiguous(self.rank, sizes.data(), self.dtype), contiguous(self.rank, sizes.data(), kInt64)};
  sort_into("topk", self, along, k, largest, out);
  return out;
}

}  // namespace etcuda
