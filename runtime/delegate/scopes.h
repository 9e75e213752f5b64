// Everything that an image's code expects to be current on its thread.
#pragma once

#include <optional>

#include "cuda/stream.h"
#include "image/image.h"

namespace etcuda {

class ImageScope {
 public:
  // `stream` is null for an image that runs on the host.
  ImageScope(Stream* stream, ModuleList& modules, bool allow_tf32) : modules_(modules) {
    if (stream == nullptr) return;
    stream_.emplace(*stream);
    current_cuda().allow_tf32 = allow_tf32;
  }

 private:
  ModuleScope modules_;
  std::optional<StreamScope> stream_;
};

}  // namespace etcuda
