// What is not about tensors: gradient mode, checks, warnings.
#include <stdexcept>

#include "shims/lists.h"

namespace etcuda {
namespace {

// There are no gradients here; the images only save, clear and restore the flag.
thread_local bool grad_mode = false;

bool grad_mode_is_enabled() {
  return grad_mode;
}
void grad_mode_set_enabled(bool enabled) {
  grad_mode = enabled;
}

// Throws as torch's does: the image's own boundary catches it.
void check(bool condition, const char* function, const char*, uint32_t line, const char* message) {
  if (condition) return;
  const std::string text =
      format("a check in the compiled model failed: %s (%s, line %u).", message == nullptr ? "" : message,
             function == nullptr ? "" : function, line);
  set_shim_error(ErrorCode::InvalidArgument, text.c_str());
  throw std::runtime_error(text);
}

void warn(const char* function, const char*, uint32_t line, const char* message) {
  report_warning(format("the compiled model warns: %s (%s, line %u)", message == nullptr ? "" : message,
                        function == nullptr ? "" : function, line));
}

}  // namespace

ShimList process_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_grad_mode_is_enabled", grad_mode_is_enabled),
      shim("aoti_torch_grad_mode_set_enabled", grad_mode_set_enabled),
      shim("aoti_torch_check", check),
      shim("aoti_torch_warn", warn),
  };
  return shim_list(shims);
}

}  // namespace etcuda
