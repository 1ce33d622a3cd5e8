// Does the GPU do what the CPU does? Asked once on a machine, before its GPU is relied on.
#ifndef FDT_GPU_CHECK_H_
#define FDT_GPU_CHECK_H_

#include <string>

namespace fdt {

// Plans, images and targets of several sets of options in the current context, against the CPU's plans and sums in
// double precision. -> what was compared; std::runtime_error says what differs.
std::string check_gpu();

}  // namespace fdt

#endif  // FDT_GPU_CHECK_H_
