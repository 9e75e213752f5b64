#include <algorithm>

#include "core/failure.h"
#include "cuda/driver.h"
#include "image/image.h"

namespace etcuda {

ModuleList*& ModuleList::current() {
  thread_local ModuleList* list = nullptr;
  return list;
}

void ModuleList::add(CUmodule module) {
  modules_.push_back({module, current_cuda().device});
}

void ModuleList::remove(CUmodule module) {
  modules_.erase(std::remove_if(modules_.begin(), modules_.end(),
                                [module](const Entry& entry) { return entry.module == module; }),
                 modules_.end());
}

ModuleList::~ModuleList() {
  for (const Entry& entry : modules_) {
    Driver* driver = Driver::get();
    CUresult result = driver->cuCtxSetCurrent(driver->device(entry.device).context);
    if (result == kCudaSuccess) result = driver->cuModuleUnload(entry.module);
    if (result != kCudaSuccess)
      report_error("unloading a CUDA module failed with " + driver->describe(result));
  }
}

}  // namespace etcuda
