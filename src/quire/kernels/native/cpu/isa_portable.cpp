#define QUIRE_ISA portable
#include "native/cpu/kernels_of_isa.h"
