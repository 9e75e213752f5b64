// Everything that an image's code expects to be current on its thread.
#pragma once

#include <optional>

#include "cuda/stream.h"
#include "image/image.h"

namespace etcuda {

class ImageScope {
 public:
  // `stream` is null for an image that runs on the host.
  ImageScope(Stream* stream, ModuleList& modules) : modules_(modules) {
    if (stream != nullptr) stream_.emplace(*stream);
  }

 private:
  ModuleScope modules_;
  std::optional<StreamScope> stream_;
};

}  // namespace etcuda
