// Which kernels are launched while the one in front of them runs, against the fake driver.
#include "cuda/kernel_table.h"
#include "cuda/stream.h"
#include "cuda_counts.h"
#include "program.h"

using namespace etcuda;
using namespace etcuda_test;

namespace {

// Loads the fake's kernel by that name, sets an attribute, and launches it once on one element: state += x.
float launch_named(const char* name) {
  Stream stream(0);
  const StreamScope scope(stream);
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  CHECK_EQ(call_shim<CUresult(CUmodule*, const void*)>("cuModuleLoadData")(&module, "code"), 0);
  CHECK_EQ(
      call_shim<CUresult(CUfunction*, CUmodule, const char*)>("cuModuleGetFunction")(&function, module, name),
      0);
  CHECK_EQ(call_shim<CUresult(CUfunction, int, int)>("cuFuncSetAttribute")(function, 8, 1024), 0);
  Driver& driver = Driver::require("a test");
  CUdeviceptr memory = 0;
  CHECK_EQ(driver.cuMemAlloc_v2(&memory, 4 * sizeof(float)), 0);
  const float values[4] = {2, 40, 1, -1};
  CHECK_EQ(driver.cuMemcpyHtoDAsync_v2(memory, values, sizeof(values), stream.handle()), 0);
  CUdeviceptr address[4];
  for (size_t i = 0; i < 4; ++i) address[i] = memory + i * sizeof(float);
  int64_t n = 1;
  void* arguments[5] = {&address[0], &address[1], &address[2], &address[3], &n};
  CHECK_EQ((call_shim<CUresult(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               unsigned, CUstream, void**, void**)>("cuLaunchKernel")(
               function, 1, 1, 1, 32, 1, 1, 0, stream.handle(), arguments, nullptr)),
           0);
  float result = 0;
  CHECK_EQ(driver.cuMemcpyDtoHAsync_v2(&result, address[3], sizeof(result), stream.handle()), 0);
  CHECK_EQ(driver.cuStreamSynchronize(stream.handle()), 0);
  CHECK_EQ(driver.cuMemFree_v2(memory), 0);
  CHECK_EQ(call_shim<CUresult(CUmodule)>("cuModuleUnload")(module), 0);
  return result;
}

}  // namespace

TEST(cuda_handles_know_their_kernel) {
  int first = 0, second = 0;
  const auto one = reinterpret_cast<CUfunction>(&first), other = reinterpret_cast<CUfunction>(&second);
  const CUfunction handle = handle_of(one, "matvec");
  CHECK(handle != one);
  CHECK(kernel_of(handle).function == one);
  CHECK_EQ(kernel_of(handle).name, std::string("matvec"));
  CHECK(!kernel_of(handle).is_pdl);
  const CUfunction early = handle_of(other, "matvec_pdl");
  CHECK(kernel_of(early).function == other);
  CHECK(kernel_of(early).is_pdl);
  CHECK(handle_of(one, "matvec") == handle);
  // Its module was unloaded, and the driver has another kernel there.
  CHECK(handle_of(one, "norm_pdl") == handle);
  CHECK_EQ(kernel_of(handle).name, std::string("norm_pdl"));
  CHECK(kernel_of(handle).is_pdl);
}

TEST(cuda_only_kernels_that_wait_by_themselves_are_launched_early) {
  const size_t before = counts().early_launches;
  CHECK_EQ(launch_named("accumulate"), 42.0f);
  CHECK_EQ(counts().early_launches, before);
  CHECK_EQ(launch_named("accumulate_pdl"), 42.0f);
  CHECK_EQ(counts().early_launches, before + 1);
}
