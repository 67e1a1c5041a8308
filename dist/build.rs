//! Has the linker pack the addresses that the program is relocated by, where it knows how: 15 KB less.

fn main() {
    println!("cargo::rerun-if-changed=dist/build.rs");
    // Others say so, and link. With glibc, the program asks for 2.36, or whichever it was built with if that is younger.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
