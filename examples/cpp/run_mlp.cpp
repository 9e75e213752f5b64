// The smallest program in C++: loads the file that examples/export_mlp.py wrote and prints one output.
// Linking libetcuda_runtime registers the delegate; nothing else of it is needed.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  executorch::extension::Module module(argc > 1 ? argv[1] : "mlp.pte");
  auto input = executorch::extension::make_tensor_ptr({8, 64}, std::vector<float>(8 * 64, 1.0f));
  const auto result = module.forward(input);
  if (!result.ok()) {
    std::fprintf(stderr, "run_mlp: error %d; the log above says why\n", static_cast<int>(result.error()));
    return 1;
  }
  const auto output = result->at(0).toTensor();
  std::printf("[%d, %d] %g\n", static_cast<int>(output.size(0)), static_cast<int>(output.size(1)),
              output.const_data_ptr<float>()[0]);
  return 0;
}
