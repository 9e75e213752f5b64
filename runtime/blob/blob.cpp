#include "blob/blob.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <memory>

#include "blob/header.h"
#include "blob/layout.h"
#include "blob/steps.h"
#include "core/failure.h"
#include "generated/delegate_generated.h"

namespace etcuda {
namespace {

// ExecuTorch's own limit on the rank of a tensor.
constexpr size_t kMaxRank = 16;

[[noreturn]] void refuse(const std::string& what) {
  fail(ErrorCode::InvalidProgram, "the delegate's description is inconsistent: %s. Export the model again.",
       what.c_str());
}

std::string text(const flatbuffers::String* string) {
  return string == nullptr ? std::string() : string->str();
}

std::string required_name(const flatbuffers::String* string, const char* what, size_t index) {
  std::string name = text(string);
  if (name.empty()) refuse(format("%s %zu has no name", what, index));
  // The name crosses into C strings.
  if (name.find('\0') != std::string::npos)
    refuse(format("the name of %s %zu holds a zero byte", what, index));
  return name;
}

DType read_dtype(schema::DType value, const std::string& owner) {
  switch (value) {
    case schema::DType::uint8:
    case schema::DType::int8:
    case schema::DType::int16:
    case schema::DType::int32:
    case schema::DType::int64:
    case schema::DType::float16:
    case schema::DType::float32:
    case schema::DType::float64:
    case schema::DType::bool_:
    case schema::DType::bfloat16:
      return static_cast<DType>(static_cast<int32_t>(value));
  }
  refuse(format("%s has dtype code %d, which this runtime does not know", owner.c_str(),
                static_cast<int>(value)));
}

Digest read_digest(const flatbuffers::Vector<uint8_t>* bytes, const std::string& owner) {
  const size_t size = bytes == nullptr ? 0 : bytes->size();
  Digest digest;
  if (size != digest.size())
    refuse(format("%s has a SHA-256 of %zu bytes, expected 32", owner.c_str(), size));
  std::memcpy(digest.data(), bytes->data(), digest.size());
  return digest;
}

DimSpec read_dim(const schema::Dim& dim, const std::string& owner, size_t index) {
  const DimSpec spec{dim.min(), dim.max(), dim.size()};
  if (spec.min < 0 || spec.max < spec.min) {
    refuse(format("%s, dimension %zu has bounds [%" PRId64 ", %" PRId64 "]", owner.c_str(), index, spec.min,
                  spec.max));
  }
  return spec;
}

ValueSpec read_value(const schema::Value* value, const char* what, size_t index) {
  if (value == nullptr) refuse(format("%s %zu is empty", what, index));
  ValueSpec spec;
  spec.name = required_name(value->name(), what, index);
  const std::string owner = format("%s %zu (%s)", what, index, spec.name.c_str());
  spec.dtype = read_dtype(value->dtype(), owner);
  const size_t rank = value->dims() == nullptr ? 0 : value->dims()->size();
  if (rank > kMaxRank)
    refuse(format("%s has %zu dimensions, at most %zu are possible", owner.c_str(), rank, kMaxRank));
  for (size_t i = 0; i < rank; ++i) {
    const auto* dim = value->dims()->Get(static_cast<flatbuffers::uoffset_t>(i));
    spec.dims.push_back(read_dim(*dim, owner, i));
  }
  const size_t reordered = value->dim_order() == nullptr ? 0 : value->dim_order()->size();
  if (reordered != rank && reordered != 0) {
    refuse(format("%s has %zu dimensions and a dim_order of %zu", owner.c_str(), rank, reordered));
  }
  uint32_t seen = 0;
  for (size_t i = 0; i < rank; ++i) {
    const auto position = static_cast<flatbuffers::uoffset_t>(i);
    const uint8_t dim = reordered == 0 ? static_cast<uint8_t>(i) : value->dim_order()->Get(position);
    if (dim >= rank || (seen >> dim & 1u) != 0) refuse(owner + " has a dim_order that is not a permutation");
    seen |= 1u << dim;
    spec.dim_order.push_back(dim);
  }
  return spec;
}

StorageSpec read_storage(const schema::Storage* storage, size_t index) {
  if (storage == nullptr) refuse(format("storage %zu is empty", index));
  const std::string owner = format("storage %zu", index);
  StorageSpec spec{
      storage->nbytes(), text(storage->data_key()), {}, storage->is_mutable(), text(storage->state_name())};
  if (spec.nbytes > INT64_MAX) refuse(format("%s has %" PRIu64 " bytes", owner.c_str(), spec.nbytes));
  const bool has_digest = storage->sha256() != nullptr && storage->sha256()->size() != 0;
  if (spec.data_key.empty()) {
    if (has_digest) refuse(owner + " has a SHA-256 but no data_key");
    spec.sha256.fill(0);
  } else {
    spec.sha256 = read_digest(storage->sha256(), owner);
  }
  if (spec.is_mutable == spec.state_name.empty()) {
    refuse(owner +
           (spec.is_mutable ? " is mutable but has no state_name" : " has a state_name but is not mutable"));
  }
  return spec;
}

ConstantSpec read_constant(const schema::Constant* constant, size_t index,
                           const std::vector<StorageSpec>& storages) {
  if (constant == nullptr) refuse(format("constant %zu is empty", index));
  ConstantSpec spec;
  spec.name = required_name(constant->name(), "constant", index);
  spec.fqn = text(constant->fqn());
  const std::string owner = format("constant %zu (%s)", index, spec.name.c_str());
  spec.dtype = read_dtype(constant->dtype(), owner);
  spec.storage = constant->storage();
  if (spec.storage >= storages.size()) {
    refuse(format("%s is in storage %u of %zu", owner.c_str(), spec.storage, storages.size()));
  }
  const size_t rank = constant->sizes() == nullptr ? 0 : constant->sizes()->size();
  const size_t strided = constant->strides() == nullptr ? 0 : constant->strides()->size();
  if (rank != strided || rank > kMaxRank) {
    refuse(format("%s has %zu sizes and %zu strides", owner.c_str(), rank, strided));
  }
  for (size_t i = 0; i < rank; ++i) {
    const auto position = static_cast<flatbuffers::uoffset_t>(i);
    spec.sizes.push_back(constant->sizes()->Get(position));
    spec.strides.push_back(constant->strides()->Get(position));
    if (spec.sizes.back() < 0 || spec.strides.back() < 0) refuse(owner + " has a negative size or stride");
  }
  spec.storage_offset = constant->storage_offset();
  if (spec.storage_offset < 0) refuse(owner + " has a negative storage offset");
  const auto extent = view_extent(spec.sizes.data(), spec.strides.data(), rank);
  const auto end = extent ? checked_add(*extent, spec.storage_offset) : std::nullopt;
  const auto end_bytes =
      end ? checked_multiply(*end, static_cast<int64_t>(dtype_size(spec.dtype))) : std::nullopt;
  const uint64_t capacity = storages[spec.storage].nbytes;
  if (!end_bytes || static_cast<uint64_t>(*end_bytes) > capacity) {
    refuse(format("%s reaches beyond the %" PRIu64 " bytes of its storage", owner.c_str(), capacity));
  }
  spec.end = static_cast<uint64_t>(*end_bytes);
  spec.nbytes = static_cast<uint64_t>(*extent) * dtype_size(spec.dtype);
  return spec;
}

// Bytes that the file holds prove a size; zeros that are only counted would be allocated on its word.
void check_zeros(const std::vector<StorageSpec>& storages, const std::vector<ConstantSpec>& constants) {
  std::vector<uint64_t> used(storages.size(), 0);
  for (const ConstantSpec& constant : constants) {
    used[constant.storage] = std::max(used[constant.storage], constant.end);
  }
  for (size_t i = 0; i < storages.size(); ++i) {
    if (storages[i].data_key.empty() && storages[i].nbytes != used[i]) {
      refuse(format("storage %zu is %" PRIu64 " bytes of zeros, of which its constants use %" PRIu64, i,
                    storages[i].nbytes, used[i]));
    }
  }
}

ImageSpec read_image(const schema::Image* image, size_t index, const uint8_t* blob, size_t nbytes,
                     size_t images_start) {
  if (image == nullptr) refuse(format("code image %zu is empty", index));
  ImageSpec spec;
  spec.target = required_name(image->target(), "code image", index);
  const std::string owner = format("code image %zu (%s)", index, spec.target.c_str());
  switch (image->device()) {
    case schema::Device::host:
      spec.device = kHost;
      break;
    case schema::Device::cuda:
      spec.device = kCuda;
      break;
    default:
      refuse(format("%s is for device %d", owner.c_str(), static_cast<int>(image->device())));
  }
  switch (image->code_kind()) {
    case schema::CodeKind::cubin:
      spec.code_kind = CodeKind::kCubin;
      break;
    case schema::CodeKind::ptx:
      spec.code_kind = CodeKind::kPtx;
      break;
    case schema::CodeKind::native:
      spec.code_kind = CodeKind::kNative;
      break;
    default:
      refuse(format("%s has code kind %d", owner.c_str(), static_cast<int>(image->code_kind())));
  }
  spec.compute_capability = image->compute_capability();
  const bool has_capability = spec.compute_capability >= 10 && spec.compute_capability < 10000;
  if (spec.device == kCuda ? !has_capability : spec.compute_capability != 0) {
    refuse(format("%s has compute capability %d", owner.c_str(), spec.compute_capability));
  }
  if ((spec.device == kHost) != (spec.code_kind == CodeKind::kNative)) {
    refuse(owner + " has a kind of code that its device does not run");
  }
  spec.machine = required_name(image->machine(), "the machine of code image", index);
  spec.isa = text(image->isa());
  const uint64_t offset = image->offset();
  const uint64_t size = image->nbytes();
  if (offset < images_start || offset > nbytes || size > nbytes - offset || size == 0) {
    refuse(format("%s lies at bytes [%" PRIu64 ", +%" PRIu64
                  ") of a blob of %zu: the file is truncated or damaged",
                  owner.c_str(), offset, size, nbytes));
  }
  if (offset % kImageAlignment != 0) refuse(format("%s is not aligned to 64 bytes", owner.c_str()));
  spec.data = blob + offset;
  spec.nbytes = static_cast<size_t>(size);
  spec.sha256 = read_digest(image->sha256(), owner);
  spec.part = image->part();
  spec.shared_memory = image->shared_memory();
  spec.largest_kernel = text(image->largest_kernel());
  return spec;
}

template <typename Vector>
size_t count(const Vector* vector) {
  return vector == nullptr ? 0 : vector->size();
}

std::vector<uint32_t> read_ignored(const schema::Delegate& root, size_t num_inputs) {
  std::vector<uint32_t> ignored;
  const size_t total = num_inputs + count(root.ignored_arguments());
  for (size_t i = 0; i < count(root.ignored_arguments()); ++i) {
    const uint32_t place = root.ignored_arguments()->Get(static_cast<flatbuffers::uoffset_t>(i));
    if (place >= total || (!ignored.empty() && place <= ignored.back())) {
      refuse(
          format("ignored argument %zu: expected an ascending position below %zu, got %u", i, total, place));
    }
    ignored.push_back(place);
  }
  return ignored;
}

SizeOp read_size_op(schema::SizeOp op, const std::string& owner) {
  if (op < schema::SizeOp::MIN || op > schema::SizeOp::MAX) {
    refuse(format("%s has step %d, which this runtime does not know", owner.c_str(), static_cast<int>(op)));
  }
  return static_cast<SizeOp>(static_cast<uint8_t>(op));
}

// Checks that the steps read what is there and leave one value, so that running them needs no check.
SizeSpec read_size(const schema::Size* size, const char* what, size_t index, size_t known,
                   const std::vector<ValueSpec>& inputs) {
  if (size == nullptr) refuse(format("%s %zu is empty", what, index));
  SizeSpec spec;
  spec.text = required_name(size->text(), what, index);
  const std::string owner = format("%s %zu (%s)", what, index, spec.text.c_str());
  const size_t length = count(size->steps());
  if (length > kMaxSizeSteps) refuse(format("%s has %zu steps", owner.c_str(), length));
  size_t depth = 0;
  for (size_t i = 0; i < length; ++i) {
    const schema::SizeStep& from = *size->steps()->Get(static_cast<flatbuffers::uoffset_t>(i));
    const SizeStep step{from.value(), read_size_op(from.op(), owner), from.dim()};
    const auto place = static_cast<uint64_t>(step.value);
    if (step.op == SizeOp::kInput && (place >= inputs.size() || step.dim >= inputs[place].dims.size())) {
      refuse(format("%s reads dimension %u of input %" PRIu64 ", which does not exist", owner.c_str(),
                    step.dim, place));
    }
    if (step.op == SizeOp::kSize && place >= known) {
      refuse(format("%s reads size %" PRIu64 ", which does not stand before it", owner.c_str(), place));
    }
    if (depth < arity(step.op)) refuse(owner + " takes more values than it has");
    depth = depth - arity(step.op) + 1;
    if (depth > kMaxSizeDepth) refuse(format("%s holds %zu values at once", owner.c_str(), depth));
    spec.steps.push_back(step);
  }
  if (depth != 1) refuse(format("%s leaves %zu values, expected 1", owner.c_str(), depth));
  return spec;
}

void check_sizes_of(const std::vector<ValueSpec>& values, const char* what, size_t known) {
  for (size_t i = 0; i < values.size(); ++i) {
    for (size_t dim = 0; dim < values[i].dims.size(); ++dim) {
      const int32_t size = values[i].dims[dim].size;
      if (size < -1 || (size >= 0 && static_cast<size_t>(size) >= known)) {
        refuse(format("%s %zu (%s), dimension %zu has size %d of %zu", what, i, values[i].name.c_str(), dim,
                      size, known));
      }
    }
  }
}

BlobSpec convert(const schema::Delegate& root, const uint8_t* blob, size_t nbytes, size_t images_start) {
  if (root.format_version() != kFormatVersion && root.format_version() != kFormatVersionOfSteps) {
    fail(
        ErrorCode::DelegateInvalidCompatibility,
        "the delegate's description has format %u, this runtime reads format %u. Export the model again with "
        "the etcuda version that is installed here.",
        root.format_version(), kFormatVersion);
  }
  BlobSpec spec;
  spec.method = required_name(root.method(), "method", 0);
  using Index = flatbuffers::uoffset_t;
  for (size_t i = 0; i < count(root.inputs()); ++i) {
    spec.inputs.push_back(read_value(root.inputs()->Get(static_cast<Index>(i)), "input", i));
  }
  for (size_t i = 0; i < count(root.outputs()); ++i) {
    spec.outputs.push_back(read_value(root.outputs()->Get(static_cast<Index>(i)), "output", i));
  }
  for (size_t i = 0; i < count(root.sizes()); ++i) {
    spec.sizes.push_back(read_size(root.sizes()->Get(static_cast<Index>(i)), "size", i, i, spec.inputs));
  }
  for (size_t i = 0; i < count(root.conditions()); ++i) {
    const auto* condition = root.conditions()->Get(static_cast<Index>(i));
    spec.conditions.push_back(read_size(condition, "condition", i, spec.sizes.size(), spec.inputs));
  }
  check_sizes_of(spec.inputs, "input", spec.sizes.size());
  check_sizes_of(spec.outputs, "output", spec.sizes.size());
  for (size_t i = 0; i < count(root.storages()); ++i) {
    spec.storages.push_back(read_storage(root.storages()->Get(static_cast<Index>(i)), i));
  }
  for (size_t i = 0; i < count(root.constants()); ++i) {
    spec.constants.push_back(read_constant(root.constants()->Get(static_cast<Index>(i)), i, spec.storages));
  }
  check_zeros(spec.storages, spec.constants);
  if (count(root.images()) == 0) refuse("there is no code image");
  for (size_t i = 0; i < count(root.images()); ++i) {
    const auto* image = root.images()->Get(static_cast<Index>(i));
    spec.images.push_back(read_image(image, i, blob, nbytes, images_start));
  }
  spec.graph_capturable = root.graph_capturable();
  spec.allow_tf32 = root.allow_tf32();
  spec.ignored_arguments = read_ignored(root, spec.inputs.size());
  read_steps(root, &spec);
  return spec;
}

// Images hold this digest, so it cannot cover theirs.
Digest digest_without_images(const schema::Delegate& root, const uint8_t* payload, size_t nbytes) {
  std::vector<uint8_t> copy(payload, payload + nbytes);
  for (size_t i = 0; i < count(root.images()); ++i) {
    const auto* digest = root.images()->Get(static_cast<flatbuffers::uoffset_t>(i))->sha256();
    std::memset(copy.data() + (digest->data() - payload), 0, digest->size());
  }
  return sha256(copy.data(), copy.size());
}

}  // namespace

BlobSpec read_blob(const void* data, size_t nbytes) {
  const auto* blob = static_cast<const uint8_t*>(data);
  const Payload payload = read_header(blob, nbytes);
  // The flatbuffer is read in place only if its address is as aligned as its offsets assume.
  std::unique_ptr<uint64_t[]> aligned;
  const uint8_t* root = payload.data;
  if (reinterpret_cast<uintptr_t>(root) % alignof(uint64_t) != 0) {
    aligned = std::make_unique<uint64_t[]>(payload.nbytes / sizeof(uint64_t) + 1);
    std::memcpy(aligned.get(), payload.data, payload.nbytes);
    root = reinterpret_cast<const uint8_t*>(aligned.get());
  }
  flatbuffers::Verifier verifier(root, payload.nbytes);
  if (payload.nbytes < 8 || !schema::VerifyDelegateBuffer(verifier)) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's description is not a valid flatbuffer. Copy or export the .pte file again.");
  }
  const schema::Delegate& delegate = *schema::GetDelegate(root);
  BlobSpec spec = convert(delegate, blob, nbytes, kHeaderSize + payload.nbytes);
  spec.description = digest_without_images(delegate, root, payload.nbytes);
  return spec;
}

}  // namespace etcuda
