// The backend that ExecuTorch knows. Nothing thrown in this library passes beyond this file.
#include <executorch/runtime/backend/interface.h>

#include <cstring>
#include <new>

#include "core/failure.h"
#include "core/last_error.h"
#include "cuda/graph_settings.h"
#include "delegate/delegate.h"
#include "memory/allocator.h"

namespace etcuda {
namespace {

using namespace ::executorch::runtime;  // NOLINT: the interface's own vocabulary

constexpr const char* kBackendId = "EtcudaBackend";

template <typename Body>
Error reported(const Body& body) noexcept {
  clear_last_error();
  try {
    body();
    return Error::Ok;
  } catch (const Failure& failure) {
    report_error(failure.what());
    return failure.code();
  } catch (const std::bad_alloc&) {
    report_error("out of host memory. Use smaller inputs or unload other models.");
    return Error::MemoryAllocationFailed;
  } catch (const std::exception& error) {
    report_error(error.what());
    return Error::Internal;
  }
}

class EtcudaBackend final : public BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(BackendInitContext& context, FreeableBuffer* processed,
                               ArrayRef<CompileSpec>) const override {
    Delegate* delegate = nullptr;
    watch_executorch_log();
    const Error error = reported([&] {
      const auto device = context.get_runtime_spec<int>("device");
      delegate = new Delegate(processed->data(), processed->size(), context.get_named_data_map(),
                              device.ok() ? *device : 0);
    });
    if (error != Error::Ok) return error;
    processed->Free();
    return static_cast<DelegateHandle*>(delegate);
  }

  Error execute(BackendExecutionContext&, DelegateHandle* handle, Span<EValue*> arguments) const override {
    return reported([&] { static_cast<Delegate*>(handle)->execute(arguments); });
  }

  void destroy(DelegateHandle* handle) const override { delete static_cast<Delegate*>(handle); }

  Error set_option(BackendOptionContext&, const Span<BackendOption>& options) override {
    return reported([&] {
      for (const BackendOption& option : options) {
        const bool* wanted = std::get_if<bool>(&option.value);
        const auto is = [&](const char* key) { return std::strcmp(option.key, key) == 0; };
        if (wanted == nullptr || !(is("reset_state") || is("empty_cache") || is("cuda_graphs"))) {
          fail(Error::InvalidArgument,
               "option %s is not known or not a bool. Known are reset_state, empty_cache and cuda_graphs.",
               option.key);
        }
        if (is("cuda_graphs")) set_cuda_graphs(*wanted);
        if (!*wanted || is("cuda_graphs")) continue;
        if (is("reset_state")) {
          reset_all_states();
        } else {
          for_each_allocator([](int, int, CachingAllocator& allocator, void*) { allocator.empty_cache(); },
                             nullptr);
        }
      }
    });
  }
};

EtcudaBackend backend;

const Error registered = [] {
  watch_executorch_log();
  return register_backend({kBackendId, &backend});
}();

}  // namespace

// For the C interface, which must say if another library took the name.
bool backend_is_registered() {
  return registered == Error::Ok && get_backend_class(kBackendId) == &backend;
}

}  // namespace etcuda
