// A code image mapped into the process: never written to disk, unmapped with its last user.
#pragma once

#include <string>
#include <vector>

#include "blob/blob.h"
#include "cuda/driver_abi.h"
#include "image/aoti_interface.h"

namespace etcuda {

class CodeImage {
 public:
  // Checks the hash, maps, checks the ABI, fills the import slots. Throws Failure.
  explicit CodeImage(const ImageSpec& spec);
  ~CodeImage();
  CodeImage(const CodeImage&) = delete;
  CodeImage& operator=(const CodeImage&) = delete;

  // Throws Failure if the image was made with another description.
  void check_description(const Digest& description) const;

  const AotiInterface& aoti() const { return aoti_; }
  const std::string& target() const { return target_; }

 private:
  void map(const ImageSpec& spec);
  void bind_imports();
  void bind_interface();
  void* symbol(const char* name) const;
  void unmap() noexcept;

  std::string target_;
  int file_ = -1;
  void* handle_ = nullptr;
  AotiInterface aoti_{};
};

// Collects the CUDA modules that an image loads on this thread, and unloads them when it goes.
class ModuleList {
 public:
  ModuleList() = default;
  ~ModuleList();
  ModuleList(const ModuleList&) = delete;
  ModuleList& operator=(const ModuleList&) = delete;

  void add(CUmodule module);
  // The image unloaded it itself.
  void remove(CUmodule module);
  // The list of the delegate that this thread works for; null outside of one.
  static ModuleList*& current();

 private:
  struct Entry {
    CUmodule module;
    int device;
  };
  std::vector<Entry> modules_;
};

class ModuleScope {
 public:
  explicit ModuleScope(ModuleList& list) : previous_(ModuleList::current()) { ModuleList::current() = &list; }
  ~ModuleScope() { ModuleList::current() = previous_; }
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

 private:
  ModuleList* previous_;
};

}  // namespace etcuda
