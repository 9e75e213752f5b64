// The steps of a blob whose code is in several parts.
#pragma once

#include "blob/blob.h"
#include "generated/delegate_generated.h"

namespace etcuda {

// Fills in steps, results and num_values of a spec whose inputs, outputs, constants and images are there.
// Throws Failure(InvalidProgram) if a step reads a value that is not there yet, or a part has no code.
void read_steps(const schema::Delegate& root, BlobSpec* spec);

}  // namespace etcuda
