#include "host/search.h"

#include "host/lines.h"

namespace etcuda {
namespace {

template <typename T>
int64_t count_before(const T* sequence, int64_t stride, const int64_t* order, int64_t order_stride,
                     int64_t size, Wide<T> value, bool right) {
  int64_t low = 0;
  int64_t high = size;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t place = order == nullptr ? middle : order[middle * order_stride];
    if (place < 0 || place >= size) {
      fail(ErrorCode::InvalidArgument, "searchsorted: the sorter holds %lld, expected 0 to %lld.",
           static_cast<long long>(place), static_cast<long long>(size - 1));
    }
    const Wide<T> held = widen(sequence[place * stride]);
    if (right ? held > value : held >= value) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <typename T>
void search_lines(const Tensor& sequence, const Tensor& values, const Tensor* sorter, bool right,
                  Tensor& out) {
  const Dim dim = dim_of("searchsorted", values, -1);
  const Dim along = dim_of("searchsorted", sequence, -1);
  // One sequence for all lines: a tensor of the rank of `values` whose other strides are 0.
  Tensor lines = sequence;
  Tensor order = sorter == nullptr ? sequence : *sorter;
  for (Tensor* each : {&lines, &order}) {
    if (each->rank == values.rank && values.rank > 1) continue;
    each->strides.fill(0);
  }
  const int64_t order_stride = sorter == nullptr ? 0 : stride_along(*sorter, along);
  for_each_line<4>(values, dim, {&values, &lines, &order, &out}, [&](const std::array<int64_t, 4>& offsets) {
    const T* from = values.data_as<T>() + offsets[0];
    const T* sorted = sequence.data_as<T>() + offsets[1];
    const int64_t* places = sorter == nullptr ? nullptr : sorter->data_as<int64_t>() + offsets[2];
    for (int64_t i = 0; i < dim.size; ++i) {
      const int64_t found = count_before<T>(sorted, stride_along(sequence, along), places, order_stride,
                                            along.size, widen(from[i * stride_along(values, dim)]), right);
      const int64_t at = offsets[3] + i * stride_along(out, dim);
      if (out.dtype == kInt32) {
        out.data_as<int32_t>()[at] = static_cast<int32_t>(found);
      } else {
        out.data_as<int64_t>()[at] = found;
      }
    }
  });
}

}  // namespace

std::unique_ptr<Tensor> host_search(const Tensor& sequence, const Tensor& values, const Tensor* sorter,
                                    bool right, bool out_int32) {
  if (sequence.dtype != values.dtype) {
    fail(ErrorCode::InvalidArgument, "searchsorted: expected values of dtype %s, got %s.",
         dtype_name(sequence.dtype), dtype_name(values.dtype));
  }
  auto out = contiguous(values.rank, values.sizes.data(), out_int32 ? kInt32 : kInt64);
  if (values.numel() == 0) return out;
  with_type("searchsorted", sequence.dtype,
            [&](auto zero) { search_lines<decltype(zero)>(sequence, values, sorter, right, *out); });
  return out;
}

}  // namespace etcuda
