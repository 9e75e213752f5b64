// Sorts, scans, binary search and reductions through indices on the host.
#include <cstring>

#include "host/scan.h"
#include "host/scatter.h"
#include "host/search.h"
#include "host/sort.h"
#include "host/strided_copy.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

template <typename Pair>
void give(Pair pair, TensorHandle* values, TensorHandle* indices) {
  *values = pair.values.release();
  *indices = pair.indices.release();
}

// Every sort is stable.
AotiError sort_stable(TensorHandle self, const int32_t*, int64_t dim, int32_t descending,
                      TensorHandle* values, TensorHandle* indices) {
  return guarded([&] { give(host_sort(*self, dim, descending != 0), values, indices); });
}

// What is asked for unsorted comes sorted.
AotiError topk(TensorHandle self, int64_t k, int64_t dim, int32_t largest, int32_t, TensorHandle* values,
               TensorHandle* indices) {
  return guarded([&] { give(host_topk(*self, k, dim, largest != 0), values, indices); });
}

AotiError scan(Scan kind, TensorHandle self, int64_t dim, const int32_t* dtype, TensorHandle* result) {
  return guarded([&] {
    if (dtype != nullptr && *dtype != self->dtype) {
      fail(ErrorCode::InvalidArgument, "a cumulative operator: expected an input of dtype %s, got %s.",
           dtype_name(*dtype), dtype_name(self->dtype));
    }
    *result = host_scan(kind, *self, dim).release();
  });
}

AotiError cumsum(TensorHandle self, int64_t dim, const int32_t* dtype, TensorHandle* result) {
  return scan(Scan::kSum, self, dim, dtype, result);
}

AotiError cumprod(TensorHandle self, int64_t dim, const int32_t* dtype, TensorHandle* result) {
  return scan(Scan::kProduct, self, dim, dtype, result);
}

AotiError logcumsumexp(TensorHandle self, int64_t dim, TensorHandle* result) {
  return scan(Scan::kLogSumExp, self, dim, nullptr, result);
}

AotiError cummax(TensorHandle self, int64_t dim, TensorHandle* values, TensorHandle* indices) {
  return guarded([&] { give(host_running_extreme(*self, dim, true), values, indices); });
}

AotiError cummin(TensorHandle self, int64_t dim, TensorHandle* values, TensorHandle* indices) {
  return guarded([&] { give(host_running_extreme(*self, dim, false), values, indices); });
}

AotiError scatter_reduce(TensorHandle out, TensorHandle self, int64_t dim, TensorHandle index,
                         TensorHandle src, const char* reduce, int32_t include_self) {
  return guarded([&] {
    if (out->data() != self->data()) {
      strided_copy(out->rank, out->sizes.data(), {out->data(), out->strides.data(), out->dtype},
                   {self->data(), self->strides.data(), self->dtype});
    }
    host_scatter_reduce(*out, dim, *index, *src, reduce, include_self != 0);
  });
}

AotiError searchsorted(TensorHandle sequence, TensorHandle self, int32_t out_int32, int32_t right,
                       const char** side, const TensorHandle* sorter, TensorHandle* result) {
  return guarded([&] {
    const bool after = side == nullptr ? right != 0 : std::strcmp(*side, "right") == 0;
    const Tensor* order = sorter == nullptr ? nullptr : *sorter;
    *result = host_search(*sequence, *self, order, after, out_int32 != 0).release();
  });
}

}  // namespace

ShimList host_order_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_cpu_sort_stable", sort_stable),
      shim("aoti_torch_cpu_topk", topk),
      shim("aoti_torch_cpu_cumsum", cumsum),
      shim("aoti_torch_cpu_cumprod", cumprod),
      shim("aoti_torch_cpu_logcumsumexp", logcumsumexp),
      shim("aoti_torch_cpu_cummax", cummax),
      shim("aoti_torch_cpu_cummin", cummin),
      shim("aoti_torch_cpu_scatter_reduce_two_out", scatter_reduce),
      shim("aoti_torch_cpu_searchsorted_Tensor", searchsorted),
  };
  return shim_list(shims);
}

}  // namespace etcuda
