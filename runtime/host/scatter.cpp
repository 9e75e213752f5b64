#include "host/scatter.h"

#include <cstring>
#include <vector>

#include "host/lines.h"

namespace etcuda {
namespace {

enum class Reduce { kSum, kProduct, kMean, kMax, kMin };

Reduce reduce_of(const char* name) {
  if (std::strcmp(name, "sum") == 0 || std::strcmp(name, "add") == 0) return Reduce::kSum;
  if (std::strcmp(name, "prod") == 0 || std::strcmp(name, "multiply") == 0) return Reduce::kProduct;
  if (std::strcmp(name, "mean") == 0) return Reduce::kMean;
  if (std::strcmp(name, "amax") == 0) return Reduce::kMax;
  if (std::strcmp(name, "amin") == 0) return Reduce::kMin;
  fail(ErrorCode::NotSupported, "scatter_reduce: expected sum, prod, mean, amax or amin, got %s.", name);
}

// Sums of integers wrap around, which signed arithmetic may not.
template <typename T>
using Accumulator = std::conditional_t<std::is_floating_point_v<Wide<T>>, double, int64_t>;

template <typename A>
A combine(Reduce reduce, A held, A value) {
  if constexpr (std::is_floating_point_v<A>) {
    switch (reduce) {
      case Reduce::kProduct:
        return held * value;
      case Reduce::kMax:
        return std::isnan(held) || held > value ? held : value;
      case Reduce::kMin:
        return std::isnan(held) || held < value ? held : value;
      default:
        return held + value;
    }
  } else {
    switch (reduce) {
      case Reduce::kProduct:
        return static_cast<A>(static_cast<uint64_t>(held) * static_cast<uint64_t>(value));
      case Reduce::kMax:
        return held > value ? held : value;
      case Reduce::kMin:
        return held < value ? held : value;
      default:
        return static_cast<A>(static_cast<uint64_t>(held) + static_cast<uint64_t>(value));
    }
  }
}

template <typename T>
T finish(Reduce reduce, Accumulator<T> value, int64_t count) {
  if (reduce != Reduce::kMean) return static_cast<T>(static_cast<Wide<T>>(value));
  if constexpr (std::is_floating_point_v<Wide<T>>) {
    return static_cast<T>(static_cast<Wide<T>>(value / static_cast<double>(count)));
  } else {
    // The sum is one of the dtype before it is divided, rounding down.
    const auto sum = static_cast<int64_t>(static_cast<T>(value));
    const int64_t quotient = sum / count;
    return static_cast<T>(quotient * count > sum ? quotient - 1 : quotient);
  }
}

template <typename T>
void reduce_lines(Tensor& out, const Dim& dim, const Tensor& index, const Tensor& src, Reduce reduce,
                  bool include_self) {
  using A = Accumulator<T>;
  const int64_t out_stride = stride_along(out, dim);
  const int64_t src_stride = stride_along(src, dim);
  const int64_t index_stride = stride_along(index, dim);
  const int64_t length = index.rank == 0 ? 1 : index.sizes[static_cast<size_t>(dim.index)];
  std::vector<A> values(static_cast<size_t>(dim.size));
  std::vector<int64_t> counts(static_cast<size_t>(dim.size));
  for_each_line<3>(index, dim, {&out, &index, &src}, [&](const std::array<int64_t, 3>& offsets) {
    T* to = out.data_as<T>() + offsets[0];
    const auto* places = index.data_as<int64_t>() + offsets[1];
    const T* from = src.data_as<T>() + offsets[2];
    counts.assign(counts.size(), 0);
    for (int64_t i = 0; i < length; ++i) {
      const int64_t place = places[i * index_stride];
      if (place < 0 || place >= dim.size) {
        fail(ErrorCode::InvalidArgument, "scatter_reduce: index %lld is out of bounds, expected 0 to %lld.",
             static_cast<long long>(place), static_cast<long long>(dim.size - 1));
      }
      const auto at = static_cast<size_t>(place);
      const A value = static_cast<A>(widen(from[i * src_stride]));
      if (counts[at] == 0 && include_self) {
        values[at] = static_cast<A>(widen(to[place * out_stride]));
        counts[at] = 1;
      }
      values[at] = counts[at] == 0 ? value : combine(reduce, values[at], value);
      ++counts[at];
    }
    for (int64_t place = 0; place < dim.size; ++place) {
      const auto at = static_cast<size_t>(place);
      if (counts[at] != 0) to[place * out_stride] = finish<T>(reduce, values[at], counts[at]);
    }
  });
}

}  // namespace

void host_scatter_reduce(Tensor& out, int64_t dim, const Tensor& index, const Tensor& src, const char* reduce,
                         bool include_self) {
  const Dim along = dim_of("scatter_reduce", out, dim);
  const Reduce chosen = reduce_of(reduce);
  if (index.dtype != kInt64 || src.dtype != out.dtype || index.rank != out.rank || src.rank != out.rank) {
    fail(ErrorCode::InvalidArgument,
         "scatter_reduce: expected int64 indices and sources of dtype %s, got %s and %s.",
         dtype_name(out.dtype), dtype_name(index.dtype), dtype_name(src.dtype));
  }
  if (index.numel() == 0) return;
  with_type("scatter_reduce", out.dtype,
            [&](auto zero) { reduce_lines<decltype(zero)>(out, along, index, src, chosen, include_self); });
}

}  // namespace etcuda
