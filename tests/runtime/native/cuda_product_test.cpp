// Products and copies on the GPU side, against the fake driver and the fake cuBLASLt.
#include <cmath>
#include <cstdlib>
#include <random>

#include "api.h"
#include "cuda/copy.h"
#include "cuda/matmul.h"
#include "cuda/stream.h"
#include "host/strided_copy.h"
#include "program.h"
#include "shims/table.h"

using namespace etcuda;
using namespace etcuda_test;

namespace {

struct Shape {
  int64_t batch, m, n, k;
};

// A [batch, rows, cols] tensor on the fake device, laid out as asked, filled at random.
struct Operand {
  std::unique_ptr<Tensor> tensor;
  double at(int64_t b, int64_t i, int64_t j) const {
    const int64_t offset = b * tensor->strides[0] + i * tensor->strides[1] + j * tensor->strides[2];
    double value = 0;
    convert_scalar(&value, kFloat64,
                   tensor->data_as<char>() + offset * static_cast<int64_t>(dtype_size(tensor->dtype)),
                   tensor->dtype);
    return value;
  }
};

enum class Order { kRows, kCols, kNeither };

Operand operand(DType dtype, int64_t batch, int64_t rows, int64_t cols, Order order, std::mt19937& random) {
  const int64_t pad = static_cast<int64_t>(random() % 3);
  const int64_t step = order == Order::kNeither ? 2 : 1;
  int64_t strides[3] = {0, 0, 0};
  if (order == Order::kCols) {
    strides[1] = 1;
    strides[2] = rows + pad;
    strides[0] = strides[2] * cols;
  } else {
    strides[2] = step;
    strides[1] = (cols + pad) * step;
    strides[0] = strides[1] * rows;
  }
  const int64_t sizes[3] = {batch, rows, cols};
  Operand made{make_empty(3, sizes, strides, dtype, kCuda, 0)};
  std::uniform_real_distribution<double> real(-1, 1);
  const int64_t count = made.tensor->extent();
  for (int64_t i = 0; i < count; ++i) {
    const double value = real(random);
    convert_scalar(made.tensor->data_as<char>() + i * static_cast<int64_t>(dtype_size(dtype)), dtype, &value,
                   kFloat64);
  }
  return made;
}

std::unique_ptr<Tensor> matrix_of(const Tensor& batched) {
  return make_view(batched.storage, 2, batched.sizes.data() + 1, batched.strides.data() + 1, 0,
                   batched.dtype);
}

double tolerance(DType dtype) {
  if (dtype == kFloat64) return 1e-12;
  return dtype == kFloat32 ? 1e-5 : (dtype == kFloat16 ? 2e-3 : 1.6e-2);
}

// addend: 0 none, 1 a row, 2 a whole matrix, 3 a column, 4 the output itself.
void check_product(DType dtype, const Shape& s, Order a_order, Order b_order, Order out_order, int addend,
                   double beta, std::mt19937& random) {
  const Operand a = operand(dtype, s.batch, s.m, s.k, a_order, random);
  const Operand b = operand(dtype, s.batch, s.k, s.n, b_order, random);
  Operand out = operand(dtype, s.batch, s.m, s.n, out_order, random);
  Operand added{nullptr};
  if (addend == 1) added = operand(dtype, 1, 1, s.n, Order::kRows, random);
  if (addend == 2) added = operand(dtype, s.batch, s.m, s.n, Order::kRows, random);
  if (addend == 3) added = operand(dtype, 1, s.m, 1, Order::kRows, random);
  if (addend == 4) added = Operand{std::make_unique<Tensor>(*out.tensor)};
  const auto addend_at = [&](int64_t batch, int64_t i, int64_t j) {
    return added.at(added.tensor->sizes[0] == 1 ? 0 : batch, added.tensor->sizes[1] == 1 ? 0 : i,
                    added.tensor->sizes[2] == 1 ? 0 : j);
  };
  const double alpha = addend == 0 ? 1 : 0.5;
  std::vector<double> expected;
  for (int64_t batch = 0; batch < s.batch; ++batch) {
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < s.k; ++p) sum += a.at(batch, i, p) * b.at(batch, p, j);
        expected.push_back(alpha * sum + (addend == 0 ? 0 : beta * addend_at(batch, i, j)));
      }
    }
  }
  const char* name = s.batch == 1 ? (addend == 0 ? "aoti_torch_cuda_mm_out" : "aoti_torch_cuda_addmm_out")
                                  : (addend == 0 ? "aoti_torch_cuda_bmm_out" : "aoti_torch_cuda_baddbmm_out");
  const bool flat = s.batch == 1;
  const auto out2 = matrix_of(*out.tensor), a2 = matrix_of(*a.tensor), b2 = matrix_of(*b.tensor);
  const auto added2 = added.tensor ? matrix_of(*added.tensor) : nullptr;
  const Tensor* handles[4] = {flat ? out2.get() : out.tensor.get(), flat ? added2.get() : added.tensor.get(),
                              flat ? a2.get() : a.tensor.get(), flat ? b2.get() : b.tensor.get()};
  take_shim_error();
  const int32_t status = addend == 0
                             ? reinterpret_cast<int32_t (*)(const Tensor*, const Tensor*, const Tensor*)>(
                                   find_shim(name))(handles[0], handles[2], handles[3])
                             : reinterpret_cast<int32_t (*)(const Tensor*, const Tensor*, const Tensor*,
                                                            const Tensor*, double, double)>(find_shim(name))(
                                   handles[0], handles[1], handles[2], handles[3], beta, alpha);
  const std::string what = format("%s %s %ld x [%ld, %ld, %ld] orders %d %d %d addend %d", name,
                                  dtype_name(dtype), s.batch, s.m, s.n, s.k, static_cast<int>(a_order),
                                  static_cast<int>(b_order), static_cast<int>(out_order), addend);
  if (status != 0) throw std::runtime_error(what + ": " + take_shim_error().message);
  size_t at = 0;
  for (int64_t batch = 0; batch < s.batch; ++batch) {
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j, ++at) {
        if (!(std::abs(out.at(batch, i, j) - expected[at]) <=
              tolerance(dtype) * (4 + static_cast<double>(s.k)))) {
          throw std::runtime_error(
              format("%s at %zu: got %g, expected %g", what.c_str(), at, out.at(batch, i, j), expected[at]));
        }
      }
    }
  }
}

void check_products(const std::vector<DType>& dtypes) {
  std::mt19937 random(11);
  Stream stream(0);
  const StreamScope scope(stream);
  const Shape shapes[] = {{1, 3, 4, 5}, {1, 1, 7, 3}, {1, 6, 1, 4}, {1, 5, 4, 1},
                          {1, 1, 1, 1}, {3, 2, 5, 4}, {2, 1, 6, 3}};
  const Order orders[] = {Order::kRows, Order::kCols, Order::kNeither};
  for (const DType dtype : dtypes) {
    for (const Shape& shape : shapes) {
      for (const Order a : orders) {
        for (const Order b : orders) {
          for (const Order out : orders) {
            check_product(dtype, shape, a, b, out, 0, 0, random);
            for (int addend = 1; addend <= 4; ++addend) {
              check_product(dtype, shape, a, b, out, addend, addend == 2 ? 0.25 : 1, random);
            }
          }
        }
      }
    }
  }
}

}  // namespace

TEST(cuda_products_in_every_layout) {
  check_products({kFloat32, kFloat64, kBFloat16, kFloat16});
}

TEST(cuda_products_without_a_bias_epilogue) {
  setenv("ETCUDA_FAKE_CUBLASLT_NO_BIAS", "1", 1);
  // Plans are cached for the process: sizes that no other test uses.
  std::mt19937 random(12);
  Stream stream(0);
  const StreamScope scope(stream);
  check_product(kFloat32, {1, 9, 10, 11}, Order::kRows, Order::kCols, Order::kRows, 1, 1, random);
  unsetenv("ETCUDA_FAKE_CUBLASLT_NO_BIAS");
}

TEST(cuda_empty_products) {
  std::mt19937 random(13);
  Stream stream(0);
  const StreamScope scope(stream);
  check_product(kFloat32, {1, 3, 4, 0}, Order::kRows, Order::kRows, Order::kRows, 0, 0, random);
  check_product(kFloat32, {1, 3, 4, 0}, Order::kRows, Order::kRows, Order::kRows, 1, 1, random);
  check_product(kFloat32, {1, 0, 4, 3}, Order::kRows, Order::kRows, Order::kRows, 0, 0, random);
  check_product(kFloat32, {2, 4, 0, 3}, Order::kRows, Order::kRows, Order::kRows, 0, 0, random);
  CHECK_FAILS(NotSupported, "inner size of 0",
              cuda_matmul("addmm", matmul_arguments(
                                       "addmm", *operand(kFloat32, 1, 2, 2, Order::kRows, random).tensor,
                                       operand(kFloat32, 1, 2, 2, Order::kRows, random).tensor.get(),
                                       *operand(kFloat32, 1, 2, 0, Order::kRows, random).tensor,
                                       *operand(kFloat32, 1, 0, 2, Order::kRows, random).tensor, 0.5, 1)));
}

TEST(cuda_copies_between_any_layouts) {
  std::mt19937 random(14);
  Stream stream(0);
  const StreamScope scope(stream);
  const Order orders[] = {Order::kRows, Order::kCols, Order::kNeither};
  for (int round = 0; round < 30; ++round) {
    for (const Order from_order : orders) {
      for (const Order to_order : orders) {
        const int64_t b = 1 + static_cast<int64_t>(random() % 3), r = 1 + static_cast<int64_t>(random() % 4);
        const int64_t c = 1 + static_cast<int64_t>(random() % 4);
        const bool spread = round % 3 == 0;
        const Operand from = operand(kFloat32, spread ? 1 : b, r, c, from_order, random);
        const Operand to = operand(kFloat32, b, r, c, to_order, random);
        copy_tensor(*to.tensor, *from.tensor);
        // Through the host and back into a third layout.
        const auto host =
            make_empty(3, to.tensor->sizes.data(), to.tensor->strides.data(), kFloat32, kHost, 0);
        copy_tensor(*host, *to.tensor);
        const Operand back = operand(kFloat32, b, r, c, from_order, random);
        copy_tensor(*back.tensor, *host);
        for (int64_t i = 0; i < b * r * c; ++i) {
          const int64_t x = i / (r * c), y = i / c % r, z = i % c;
          CHECK_EQ(to.at(x, y, z), from.at(spread ? 0 : x, y, z));
          CHECK_EQ(back.at(x, y, z), to.at(x, y, z));
        }
      }
    }
  }
  const Operand floats = operand(kFloat32, 1, 2, 2, Order::kRows, random);
  const Operand halves = operand(kFloat16, 1, 2, 2, Order::kRows, random);
  CHECK_FAILS(NotSupported, "from float32 to float16", copy_tensor(*halves.tensor, *floats.tensor));
}
