// SPDX-License-Identifier: Apache-2.0
/*
 * What runs in the virtual machine of a pod when there is no time for a Linux: a multiboot kernel
 * that finds the VFs it has, uses the first, and says so on the first serial port.
 *
 *   gcc -m32 -ffreestanding ... payload.c -o payload.elf (see setup.sh)
 *   qemu-system-x86_64 -machine pc -kernel payload.elf -append 0123abcd -serial ... \
 *       -device isa-debug-exit,iobase=0xf4,iosize=4 -device vfio-pci,host=...
 *
 * The last word of the command line, in hexadecimal, goes into the VF's message register. Then the
 * VF is given one request after the other (registers: ../qemu/qatemu.c), and its work is checked,
 * until a byte comes over the serial port: the number of requests is told and the machine ends. One
 * without a VF waits for that byte. What it says, a line each:
 *
 *   pci 00:02.0 8086:4941     a function, for all of bus 0
 *   vf 00:02.0                the one that is used
 *   wrote 0123abcd            into its message register
 *   ready                     its first request is done, or there is nothing to use
 *   requests 4711             the last line
 *   failed: ...               instead of any; the machine ends
 */
#include <stdint.h>

/* A VF of the 4xxx. */
enum { VENDOR = 0x8086, DEVICE = 0x4941 };

/* Registers of BAR 0. */
enum { SRC = 0x40, DST = 0x48, LEN = 0x50, DOORBELL = 0x58, STATUS = 0x60, MESSAGE = 0x68 };
enum { XOR = 0x5a }; /* what a request does to every byte */

enum { COM1 = 0x3f8, COM1_STATUS = COM1 + 5, RECEIVED = 1, SENDABLE = 0x20 };
enum { PCI_ADDRESS = 0xcf8, PCI_DATA = 0xcfc, PCI_COMMAND = 0x4, PCI_BAR0 = 0x10, MEMORY_AND_MASTER = 0x6 };
enum { DEBUG_EXIT = 0xf4 };

/* Multiboot 0.6.96, 3.1.1 and 3.3: the header, and what a loader hands over. */
enum { HEADER_MAGIC = 0x1badb002, INFO_CMDLINE = 1 << 2 };
struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
};

__attribute__((section(".multiboot"), used, aligned(4))) static const uint32_t header[] = { HEADER_MAGIC, 0, -(uint32_t)HEADER_MAGIC };

asm(".globl _start\n"
    "_start: cli\n"
    "        mov $stack + 16384, %esp\n"
    "        push %ebx\n"
    "        call run\n"
    ".lcomm stack, 16384\n");

static void outb(uint16_t port, uint8_t v) { asm volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }
static void outl(uint16_t port, uint32_t v) { asm volatile("outl %0, %1" :: "a"(v), "Nd"(port)); }
static uint8_t inb(uint16_t port) { uint8_t v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static uint32_t inl(uint16_t port) { uint32_t v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static void say(const char *s)
{
    for (; *s; s++) {
        while (!(inb(COM1_STATUS) & SENDABLE)) {
        }
        outb(COM1, *s);
    }
}

static void say_hex(uint32_t v, int digits)
{
    while (digits--) {
        say((char[]){ "0123456789abcdef"[v >> 4 * digits & 15], 0 });
    }
}

static void say_decimal(uint32_t v)
{
    if (v >= 10) {
        say_decimal(v / 10);
    }
    say((char[]){ '0' + v % 10, 0 });
}

/* say_function names a function of bus 0 as lspci does. */
static void say_function(const char *what, uint32_t function)
{
    say(what);
    say(" 00:");
    say_hex(function >> 3, 2);
    say(".");
    say_hex(function & 7, 1);
}

static void end(void)
{
    outb(DEBUG_EXIT, 0);
    for (;;) {
        asm volatile("hlt");
    }
}

static void fail(const char *why, uint32_t value)
{
    say("failed: ");
    say(why);
    say(": ");
    say_hex(value, 8);
    say("\n");
    end();
}

static uint32_t config_read(uint32_t function, uint32_t offset)
{
    outl(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    return inl(PCI_DATA);
}

static void config_write(uint32_t function, uint32_t offset, uint32_t v)
{
    outl(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    outl(PCI_DATA, v);
}

/* word is the last word of a command line, as a hexadecimal number. */
static uint32_t word(const struct multiboot_info *info)
{
    uint32_t v = 0;

    if (!(info->flags & INFO_CMDLINE)) {
        fail("no command line, flags", info->flags);
    }
    for (const char *s = (const char *)info->cmdline; *s; s++) {
        if (*s >= '0' && *s <= '9') {
            v = v << 4 | (*s - '0');
        } else if (*s >= 'a' && *s <= 'f') {
            v = v << 4 | (*s - 'a' + 10);
        } else {
            v = 0;
        }
    }
    return v;
}

/* find lists all functions and returns the first that is a VF, or -1. */
static int find(void)
{
    int found = -1;

    for (uint32_t f = 0; f < 256; f++) {
        uint32_t id = config_read(f, 0);

        if (id == ~0u) {
            continue;
        }
        say_function("pci", f);
        say(" ");
        say_hex(id & 0xffff, 4);
        say(":");
        say_hex(id >> 16, 4);
        say("\n");
        if (found < 0 && id == ((uint32_t)DEVICE << 16 | VENDOR)) {
            found = f;
        }
    }
    return found;
}

/* open switches the function on and returns its registers. */
static volatile uint32_t *open(uint32_t function)
{
    uint32_t low = config_read(function, PCI_BAR0), high = config_read(function, PCI_BAR0 + 4);

    if (high || !(low & ~15u)) {
        fail("BAR 0 is not where 32 bits reach it, upper half", high);
    }
    config_write(function, PCI_COMMAND, config_read(function, PCI_COMMAND) | MEMORY_AND_MASTER);
    return (volatile uint32_t *)(low & ~15u);
}

/* rest lets a good part of a millisecond pass. Where a VF was written to without end, QEMU's lock was
 * as busy, and a CPU of the guest around this machine lost its timer for good in 2 of 7 runs. */
static void rest(void)
{
    uint64_t begin = __builtin_ia32_rdtsc();

    while (__builtin_ia32_rdtsc() - begin < 1 << 20) {
        asm volatile("pause");
    }
}

/* request has the VF move data of this machine's memory, and checks what it made of it. The upper
 * halves of all registers are 0 since the reset. */
static void request(volatile uint32_t *bar, uint32_t seed)
{
    static volatile uint8_t source[64], dest[64];

    for (unsigned i = 0; i < sizeof source; i++) {
        source[i] = seed + i;
        dest[i] = 0;
    }
    bar[SRC / 4] = (uint32_t)source;
    bar[DST / 4] = (uint32_t)dest;
    bar[LEN / 4] = sizeof source;
    bar[DOORBELL / 4] = 1;
    if (bar[STATUS / 4] != 0 || bar[STATUS / 4 + 1] != 1u << 31) {
        fail("status of a request, lower half", bar[STATUS / 4]);
    }
    for (unsigned i = 0; i < sizeof dest; i++) {
        if (dest[i] != (source[i] ^ XOR)) {
            fail("wrong byte from the VF at", i);
        }
    }
}

__attribute__((used)) static void run(const struct multiboot_info *info)
{
    int vf = find();
    uint32_t requests = 0;

    if (vf >= 0) {
        volatile uint32_t *bar = open(vf);
        uint32_t w = word(info);

        say_function("vf", vf);
        bar[MESSAGE / 4] = w;
        say("\nwrote ");
        say_hex(w, 8);
        request(bar, requests++);
        say("\nready\n");
        while (!(inb(COM1_STATUS) & RECEIVED)) {
            rest();
            request(bar, requests++);
        }
    } else {
        say("ready\n");
        while (!(inb(COM1_STATUS) & RECEIVED)) {
            rest();
        }
    }
    say("requests ");
    say_decimal(requests);
    say("\n");
    end();
}
