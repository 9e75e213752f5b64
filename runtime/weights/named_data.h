// The program's named data: where weights come from.
#pragma once

#include <executorch/runtime/core/freeable_buffer.h>
#include <executorch/runtime/core/named_data_map.h>

#include <string>

#include "blob/blob.h"

namespace etcuda {

using FreeableBuffer = ::executorch::runtime::FreeableBuffer;
using NamedDataMap = ::executorch::runtime::NamedDataMap;

class NamedData {
 public:
  // `map` may be null: a program without named data.
  explicit NamedData(const NamedDataMap* map) : map_(map) {}

  // The bytes of a storage. Throws Failure that names the key and `fqn` if they are missing or of the wrong
  // size.
  FreeableBuffer load(const StorageSpec& storage, const std::string& fqn) const;

  // Identifies the loaded program: the same for all of its methods, different from any other program that is
  // loaded at the same time. Null if the program does not hold the key `etcuda/program`.
  const void* program() const;

  // Identifies the program by its content, in any process: the SHA-256 of the sorted keys of its weights,
  // which are digests themselves.
  Digest digest() const;

 private:
  const NamedDataMap* map_;
};

}  // namespace etcuda
