// Sorts, scans, binary search and reductions through indices: strides, and what is refused.
#include <cmath>

#include "check.h"
#include "host/scan.h"
#include "host/scatter.h"
#include "host/search.h"
#include "host/sort.h"

using namespace etcuda;

namespace {

template <typename T>
Tensor view(std::vector<T>& values, DType dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  const auto storage = borrow_storage(values.data(), values.size() * sizeof(T), kHost, 0);
  return *make_view(storage, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype);
}

template <typename T>
Tensor row(std::vector<T>& values, DType dtype) {
  return view(values, dtype, {static_cast<int64_t>(values.size())}, {1});
}

TEST(order_sort_keeps_strides_and_equal_elements_in_order) {
  // Columns of (3, 2) that lie one after another.
  std::vector<float> values = {2, NAN, 2, 5, -1, 5};
  const Tensor x = view(values, kFloat32, {3, 2}, {1, 3});
  const Sorted up = host_sort(x, 0, false);
  CHECK_EQ(up.values->strides[0], 1);
  CHECK_EQ(up.values->strides[1], 3);
  const auto* indices = up.indices->data_as<int64_t>();
  const std::vector<int64_t> expected = {0, 2, 1, 1, 0, 2};
  for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(indices[i], expected[i]);
  const Sorted down = host_sort(x, 0, true);
  CHECK(std::isnan(down.values->data_as<float>()[0]));
  CHECK_EQ(down.indices->data_as<int64_t>()[1], 0);
}

TEST(order_topk_is_contiguous) {
  std::vector<int64_t> values = {3, 1, 2, 9, 9, 7};
  const Sorted found = host_topk(view(values, kInt64, {3, 2}, {1, 3}), 2, 0, true);
  const std::vector<int64_t> expected = {3, 9, 2, 9};
  for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(found.values->data_as<int64_t>()[i], expected[i]);
  CHECK_FAILS(InvalidArgument, "expected k from 0 to the size of the dimension, 6, got 7",
              host_topk(row(values, kInt64), 7, 0, true));
}

TEST(order_refusals) {
  std::vector<int64_t> places = {0, 4};
  std::vector<float> values = {1, 2}, out = {0, 0, 0, 0};
  Tensor to = row(out, kFloat32);
  const Tensor index = row(places, kInt64);
  const Tensor from = row(values, kFloat32);
  CHECK_FAILS(InvalidArgument, "index 4 is out of bounds, expected 0 to 3",
              host_scatter_reduce(to, 0, index, from, "amax", true));
  CHECK_FAILS(NotSupported, "expected sum, prod, mean, amax or amin, got median",
              host_scatter_reduce(to, 0, index, from, "median", true));
  CHECK_FAILS(InvalidArgument, "the sorter holds 4, expected 0 to 1",
              host_search(from, from, &index, false, false));
  CHECK_FAILS(InvalidArgument, "expected values of dtype float32, got int64",
              host_search(from, index, nullptr, false, false));
  CHECK_FAILS(InvalidArgument, "dimension 1 of a tensor of rank 1", host_sort(from, 1, false));
  CHECK_FAILS(NotSupported, "logcumsumexp takes no int64", host_scan(Scan::kLogSumExp, index, 0));
}

TEST(order_integers_wrap_around) {
  std::vector<int64_t> values = {INT64_MAX, 1};
  CHECK_EQ(host_scan(Scan::kSum, row(values, kInt64), 0)->data_as<int64_t>()[1], INT64_MIN);
}

}  // namespace
