#define QUIRE_ISA avx2
#include "native/cpu/kernels_of_isa.h"
