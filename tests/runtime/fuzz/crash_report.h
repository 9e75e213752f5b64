// Says of a crash in this process whose code it was in.
#pragma once

// From now on a crash writes one line, "crash SIGNAL OWNER FRAMES", to the descriptor and ends the process
// with status 100. OWNER is "ours" if the innermost frame outside of the system's libraries lies in etcuda's
// runtime or in a code image, else "theirs".
extern "C" void etcuda_fuzz_report_crashes_to(int descriptor);
