#include "host/scan.h"

#include <algorithm>

#include "host/lines.h"

namespace etcuda {
namespace {

// Integers wrap around, which signed arithmetic may not.
template <typename T>
using Accumulator = std::conditional_t<std::is_floating_point_v<Wide<T>>, double, uint64_t>;

double log_add_exp(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  const double greater = std::max(a, b);
  const double less = std::min(a, b);
  return greater == less && std::isinf(greater) ? greater : greater + std::log1p(std::exp(less - greater));
}

template <typename A>
A combine(Scan scan, A sum, A value) {
  if (scan == Scan::kProduct) return sum * value;
  if constexpr (std::is_floating_point_v<A>) {
    if (scan == Scan::kLogSumExp) return log_add_exp(sum, value);
  }
  return sum + value;
}

template <typename T>
void scan_lines(Scan scan, const Tensor& self, const Dim& dim, Tensor& out) {
  using A = Accumulator<T>;
  const int64_t stride = stride_along(self, dim);
  const int64_t out_stride = stride_along(out, dim);
  for_each_line<2>(self, dim, {&self, &out}, [&](const std::array<int64_t, 2>& offsets) {
    const T* from = self.data_as<T>() + offsets[0];
    T* to = out.data_as<T>() + offsets[1];
    A sum{};
    for (int64_t i = 0; i < dim.size; ++i) {
      const A value = static_cast<A>(widen(from[i * stride]));
      sum = i == 0 ? value : combine(scan, sum, value);
      to[i * out_stride] = static_cast<T>(static_cast<Wide<T>>(sum));
    }
  });
}

template <typename T>
void running_extreme(const Tensor& self, const Dim& dim, bool greatest, const Extreme& out) {
  const int64_t stride = stride_along(self, dim);
  const int64_t values_stride = stride_along(*out.values, dim);
  const int64_t indices_stride = stride_along(*out.indices, dim);
  for_each_line<3>(self, dim, {&self, out.values.get(), out.indices.get()},
                   [&](const std::array<int64_t, 3>& offsets) {
                     const T* from = self.data_as<T>() + offsets[0];
                     int64_t best = 0;
                     for (int64_t i = 0; i < dim.size; ++i) {
                       const Wide<T> value = widen(from[i * stride]);
                       const Wide<T> held = widen(from[best * stride]);
                       if (is_nan(value) || (!is_nan(held) && (greatest ? value >= held : value <= held))) {
                         best = i;
                       }
                       out.values->data_as<T>()[offsets[1] + i * values_stride] = from[best * stride];
                       out.indices->data_as<int64_t>()[offsets[2] + i * indices_stride] = best;
                     }
                   });
}

}  // namespace

std::unique_ptr<Tensor> host_scan(Scan scan, const Tensor& self, int64_t dim) {
  const Dim along = dim_of("a cumulative operator", self, dim);
  auto out = contiguous(self.rank, self.sizes.data(), self.dtype);
  if (self.numel() == 0) return out;
  with_type("a cumulative operator", self.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (scan == Scan::kLogSumExp && !std::is_floating_point_v<Wide<T>>) {
      fail(ErrorCode::NotSupported, "logcumsumexp takes no %s.", dtype_name(self.dtype));
    }
    scan_lines<T>(scan, self, along, *out);
  });
  return out;
}

Extreme host_running_extreme(const Tensor& self, int64_t dim, bool greatest) {
  const char* op = greatest ? "cummax" : "cummin";
  const Dim along = dim_of(op, self, dim);
  Extreme out{contiguous(self.rank, self.sizes.data(), self.dtype),
              contiguous(self.rank, self.sizes.data(), kInt64)};
  if (self.numel() == 0) return out;
  with_type(op, self.dtype, [&](auto zero) { running_extreme<decltype(zero)>(self, along, greatest, out); });
  return out;
}

}  // namespace etcuda
